"""Use cases that carry adapters in and out."""
