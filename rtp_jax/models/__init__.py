"""Model architectures: one file for each, its weight table beside it."""
