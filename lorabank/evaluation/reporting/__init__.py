"""Reports as HTML files: of one bank, and of results that are compared."""
