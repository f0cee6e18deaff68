"""The bank over HTTP: a queue, one thread that owns the model, and the endpoints that OpenAI's clients know."""
