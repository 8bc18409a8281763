"""The entry points that XLA is told of when a library is loaded."""

HANDLERS: tuple[str, ...] = (
    "rtp_linear",
    "rtp_embed",
    "rtp_attention",
    "rtp_rope_kv",
    "rtp_rms_norm",
    "rtp_largest",
    "rtp_unwritten",
)
