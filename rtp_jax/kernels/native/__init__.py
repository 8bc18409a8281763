"""C++ kernels for the CPU, called through `jax.ffi` and built at first use."""
