"""Every class of transformers' automatic mappings as a tiny random model, and what lorabank makes of it."""
