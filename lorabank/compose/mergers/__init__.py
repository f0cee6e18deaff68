"""Mergers: adapters made into one state that is the same for all texts; one file each."""
