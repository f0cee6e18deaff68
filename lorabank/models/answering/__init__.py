"""How a model answers: heads, label likelihoods, generated text."""
