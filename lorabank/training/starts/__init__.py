"""Where the factors of a new adapter begin: one file a start."""
