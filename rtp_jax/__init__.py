"""rtp_jax: an LLM inference engine on JAX, for CPUs and NVIDIA GPUs."""
