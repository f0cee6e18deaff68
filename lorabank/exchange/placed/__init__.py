"""Adapters whose tensors say only beside the base model's modules what they adapt: one file for each form."""
