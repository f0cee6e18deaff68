"""Strategies, one file for each method: what earlier adapters do while a new one is trained, and what holds it."""
