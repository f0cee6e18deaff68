"""Layers with an adapter as single nodes of the graph: the products, and what is kept for their gradients."""
