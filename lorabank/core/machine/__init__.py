"""What the machine, its processes and its Python packages offer."""
