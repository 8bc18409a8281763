"""rtp-jax-ckpt: looks into checkpoints, converts, merges, quantizes and compares them.

Read first: `main.py` for the commands, `job.py` for how an output comes to be.
"""
