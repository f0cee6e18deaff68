"""Whole experiments: a file of tasks, orders, strategies and seeds, one bank for each."""
