"""Folders of PEFT's tuners, ours and those of strangers."""
