"""Which rotary embedding does a config ask for, and for how many positions does it hold?

Two generations of Hugging Face configs say it differently: `rope_theta` and `rope_scaling` at the
top, or both inside `rope_parameters`.
"""

from rtp_jax.layers.rope_frequencies import (
    Linear,
    Llama3,
    Rope,
    Unscaled,
    Yarn,
    yarn_attention_factor,
)
from rtp_jax.models.fields import Fields

VARIANTS = ("default", "linear", "dynamic", "llama3", "yarn")
DEFAULT_THETA = 10_000.0


def read_rope(config: Fields, head_dim: int) -> tuple[Rope, int]:
    """Read the rotary embedding, and the number of positions that it supports."""
    trained = config.integer("max_position_embeddings")
    rope = config.part("rope_scaling" if config.values.get("rope_scaling") else "rope_parameters")
    for fields in (config, rope):
        if fields.has("partial_rotary_factor") and fields.number("partial_rotary_factor") != 1:
            raise fields.unsupported("partial_rotary_factor", "Supported: 1.")
    theta = config.number("rope_theta", DEFAULT_THETA, low=1.0)
    theta = rope.number("rope_theta", theta, low=1.0)
    kind = "rope_type" if rope.has("rope_type") else "type"
    variant = rope.choice(kind, "default", VARIANTS)
    if variant == "linear":
        factor = rope.number("factor", low=1.0)
        return Rope(head_dim, theta, Linear(factor)), int(trained * factor)
    if variant == "llama3":
        return Rope(head_dim, theta, _llama3(config, rope, trained)), trained
    if variant == "yarn":
        scaling = _yarn(config, rope, trained)
        reach = int(scaling.original_positions * scaling.factor)
        return Rope(head_dim, theta, scaling), max(trained, reach)
    # `dynamic` scales all positions anew when a sequence outgrows the trained length, which cached
    # keys cannot follow: up to that length it is the plain embedding, and beyond it is refused.
    return Rope(head_dim, theta, Unscaled()), trained


def _original(config: Fields, rope: Fields, trained: int) -> int:
    name = "original_max_position_embeddings"
    return config.integer(name, rope.integer(name, trained))


def _llama3(config: Fields, rope: Fields, trained: int) -> Llama3:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.disagree("high_freq_factor", f"low_freq_factor is {low:g}, not below it")
    original = _original(config, rope, trained)
    return Llama3(rope.number("factor", low=1.0), low, high, original)


def _yarn(config: Fields, rope: Fields, trained: int) -> Yarn:
    original = _original(config, rope, trained)
    factor = rope.number("factor", max(trained / original, 1.0), low=1.0)
    mscale = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    return Yarn(
        factor=factor,
        original_positions=original,
        attention_factor=rope.number("attention_factor", yarn_attention_factor(factor, *mscale)),
        beta_fast=rope.number("beta_fast", 32.0) or 32.0,
        beta_slow=rope.number("beta_slow", 1.0) or 1.0,
        truncate=rope.flag("truncate", True),
    )
