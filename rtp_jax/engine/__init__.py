"""The engine: one loop, and the Python API around it."""
