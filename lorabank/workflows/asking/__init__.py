"""Use cases that answer new texts."""
