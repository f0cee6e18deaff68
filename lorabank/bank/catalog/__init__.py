"""The rows of a bank: their schema, reading, writing, history."""
