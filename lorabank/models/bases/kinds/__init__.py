"""How a module that can be adapted keeps its matrix: one file a kind."""
