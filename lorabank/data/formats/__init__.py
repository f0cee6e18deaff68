"""Table files: a reader for each format, which answers for its syntax."""
