"""How arrays are encoded in fewer bits."""
