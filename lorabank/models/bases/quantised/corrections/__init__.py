"""Corrections of a quantised base: low-rank factors beside it that belong to the base, one file each."""
