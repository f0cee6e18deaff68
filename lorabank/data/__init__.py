"""Data: files in, checked rows out. Knows neither torch nor the bank."""
