"""What the training loop is made of: which rows are in a batch, and what becomes of the terms of the loss."""
