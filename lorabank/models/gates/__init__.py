"""Gates: learned weights of adapters per module and token."""
