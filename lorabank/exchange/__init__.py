"""Folders of other tools: PEFT's format in and out, adapters of strangers, what servers load."""
