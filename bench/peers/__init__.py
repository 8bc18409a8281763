"""rtp_jax beside other engines, in one interleaved run: `setup` makes the peers, `run` measures."""
