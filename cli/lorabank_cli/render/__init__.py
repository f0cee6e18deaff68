"""What people and programs see: text, tables, progress, streams."""
