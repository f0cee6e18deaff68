"""Use cases that add a task."""
