"""Base models: finding, loading, their heads and features; and the mixture of adapters on them."""
