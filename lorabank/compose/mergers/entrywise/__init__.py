"""Mergers that treat a task's delta weights as one long vector of entries; their results have full rank."""
