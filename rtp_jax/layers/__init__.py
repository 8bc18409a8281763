"""Parts that models share; the floor that knows the mesh."""
