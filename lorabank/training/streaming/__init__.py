"""Training on a stream of rows whose tasks are not known."""
