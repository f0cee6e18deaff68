"""Formats of files that several rooms read, judged with the standard library alone."""
