"""Training one adapter under a strategy and its penalties."""
