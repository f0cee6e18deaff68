"""Mergers that ask the model with the rows that each task kept; their results are stored, stage by stage."""
