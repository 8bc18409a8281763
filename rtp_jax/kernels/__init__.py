"""What must be fast: one folder for each operation, its reference beside its kernels."""
