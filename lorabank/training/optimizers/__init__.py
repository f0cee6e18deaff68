"""Optimizers: how a step is made of gradients."""
