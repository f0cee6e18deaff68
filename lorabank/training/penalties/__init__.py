"""Penalties, one file for each paper."""
