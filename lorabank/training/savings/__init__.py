"""What a training step leaves out: one file a saving."""
