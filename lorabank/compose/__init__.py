"""Composition modes, one file each."""
