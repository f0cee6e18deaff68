"""Scores, the matrix, its metrics and pictures."""
