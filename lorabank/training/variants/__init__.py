"""How an adapter's factors come from what is trained: one file a variant."""
