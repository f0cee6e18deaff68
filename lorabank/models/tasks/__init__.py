"""What each kind of model learns from: encoded rows, batches, heads, prompts."""
