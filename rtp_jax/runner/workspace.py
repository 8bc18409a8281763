"""What does an engine hold besides weights and KV pages, and how large is it?

On a CPU the memory of the device is that of the process, so Python, libraries, tokenizer and
programs count.  What they take does not follow from shapes; it was measured with jax 0.11 on x86-64
(`python -m bench.memory MODEL`).  Plain arithmetic, without jax.

Read next: `memory_plan.py`, which gives the rest to KV pages.
"""

from dataclasses import dataclass

from rtp_jax.config import ModelConfig, SchedulerConfig
from rtp_jax.quant.kv_schemes import KVLayers
from rtp_jax.runner.buckets import Bucket, lattice
from rtp_jax.sampling_params import MAX_LOGIT_BIAS, MAX_LOGPROB_TOKEN_IDS

MB, GIB = 10**6, 1 << 30
GPU_RESERVE = GIB  # compiled programs, the runtime, attention's tiles
PROCESS = 210 * MB  # Python, jax, our code, what serving allocates; half of it shared libraries
PROGRAM = 17 * MB  # what XLA keeps of the program of a bucket, whatever the model's size
TOKEN = 320  # bytes of an entry of a tokenizer's vocabulary, its merge included
AFTER_COMPILING = 190 * MB  # that also stay resident where a start compiled its programs
LOGITS_COPIES = {"cpu": 2, "cuda": 5}  # a CPU samples few rows at a time; a GPU all of them at once
LYING = ("history", "options")  # what lies on the device between steps, as weights do


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelMemory:
    """The numbers of a model that decide how much memory it takes.

    Of what one device has, except for the weights.
    """

    weight_bytes: int  # of all devices whose memory this is
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    mlp_size: int
    vocab_size: int
    max_positions: int
    itemsize: int  # bytes of a number in computation
    kv: KVLayers  # how each layer keeps keys and values
    num_devices: int = 1  # whose memory this is

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, and their scales, on all devices."""
        return self.num_devices * self.kv.bytes_per_token(self.num_kv_heads, self.head_dim)


def workspace(
    sizes: ModelMemory,
    *,
    model: ModelConfig,
    scheduler: SchedulerConfig,
    platform: str,
    length: int,
) -> tuple[tuple[str, int], ...]:
    """List what is held besides weights and pages where a context has `length` tokens.

    Activations: of one layer at a time, the residual stream, its normalised copy, the layer's
    output and what it is added to; queries, keys, values and attention's output; gate, up and
    their product.
    """
    buckets = lattice(
        scheduler.max_num_batched_tokens,
        scheduler.max_num_seqs,
        deterministic=model.deterministic,
    )
    tokens = max(bucket.tokens for bucket in buckets)
    rows = max(bucket.sequences for bucket in buckets)
    heads = 2 * sizes.num_heads + 2 * sizes.num_kv_heads
    width = 4 * sizes.hidden_size + heads * sizes.head_dim + 3 * sizes.mlp_size
    of_a_device = (
        ("activations", tokens * width * sizes.itemsize),
        ("logits", rows * sizes.vocab_size * 4 * LOGITS_COPIES[platform]),
        ("history", (scheduler.max_num_seqs + 1) * (length + 1) * 4),
        ("options", sum(_options(bucket, sizes.vocab_size) for bucket in buckets)),
    )
    of_a_step = tuple((what, sizes.num_devices * size) for what, size in of_a_device)
    if platform != "cpu":
        return (*of_a_step, ("reserve", GPU_RESERVE))
    has_tokenizer = not model.skip_tokenizer_init
    return (
        *of_a_step,
        ("tokenizer", TOKEN * sizes.vocab_size * has_tokenizer),
        ("programs", PROGRAM * len(buckets)),
        ("process", PROCESS),
    )


def _options(bucket: Bucket, vocab_size: int) -> int:
    """Neutral options of the rows of a bucket: a bit mask, biases, and ids to report."""
    words = -(-vocab_size // 32)
    return bucket.sequences * 4 * (words + 2 * MAX_LOGIT_BIAS + MAX_LOGPROB_TOKEN_IDS) + 3
