"""Programs that make the tokens of answers in the place of the bank's own model."""
