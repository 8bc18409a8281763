"""What every engine is asked: shapes of models, prompts and requests, all from fixed seeds.

Only the standard library is used here, because each engine runs in an environment of its own.
"""

import math
import random
from dataclasses import dataclass

MAX_LEN = 2304  # tokens of prompt and output together: the longest prompt is 2048
SLOTS = 16  # sequences at once
KV_TOKENS = 16 * 1024  # KV memory is planned for these, in every engine
DECODE_CONTEXT, DECODE_NEW = 128, 64
SERVED_SEED, SERVED_REQUESTS = 1234, 32
FIRST_PROMPT = 128  # tokens of the prompt that a fresh process answers
FILL_PROMPT, FILL_NEW = 952, 64  # in every slot; new ones enough for all to be there together


@dataclass(frozen=True)
class Shape:
    """The dimensions of a model; its weights are drawn at random."""

    arch: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    rope_theta: float
    norm_eps: float
    max_position: int
    rope_scaling: dict | None = None

    @property
    def num_weights(self) -> int:
        """Count the numbers in all matrices; the embedding also unembeds."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = self.hidden * (2 * queries + 2 * keys + 3 * self.mlp)
        return layer * self.layers + self.hidden * self.vocab


SHAPES = {
    "small": Shape("qwen3", 512, 8, 8, 4, 64, 1536, 32000, 1e6, 1e-6, 40960),
    "qwen3-0.6b": Shape("qwen3", 1024, 28, 16, 8, 128, 3072, 151936, 1e6, 1e-6, 40960),
    "llama3.2-1b": Shape(
        "llama",
        2048,
        16,
        32,
        8,
        64,
        8192,
        128256,
        5e5,
        1e-5,
        131072,
        {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
}
PUBLISHED = ["qwen3-0.6b", "llama3.2-1b"]  # `small` is nobody's: for trying the harness itself


@dataclass(frozen=True)
class Request:
    """One request of the served mix."""

    prompt: list[int]
    max_tokens: int
    arrival_s: float  # after the start; 0.0 for all if they come at once


def prompt_ids(model: str, length: int, seed: int) -> list[int]:
    """Draw token ids that every engine's placeholder tokenizer treats as ordinary."""
    draw = random.Random(seed * 1_000_003 + length)
    return [draw.randrange(300, SHAPES[model].vocab - 300) for _ in range(length)]


def decode_prompts(model: str, batch: int, seed: int) -> list[list[int]]:
    """Draw the prompts of a decode workload, all different."""
    return [prompt_ids(model, DECODE_CONTEXT, seed * 1000 + row) for row in range(batch)]


def served_requests(model: str, *, per_minute: int = 0, seed: int = 0) -> list[Request]:
    """Draw the served mix: prompts of 32 to 512 tokens, log-uniform, and 32 to 128 new ones.

    They arrive as a Poisson process of `per_minute` requests, or all at once with 0.  Lengths and
    the pattern of arrivals are the same whatever the seed, which only changes the tokens.
    """
    draw = random.Random(SERVED_SEED)
    arrival, requests = 0.0, []
    for number in range(SERVED_REQUESTS):
        length = round(math.exp(draw.uniform(math.log(32), math.log(512))))
        max_tokens = draw.randint(32, 128)
        arrival += draw.expovariate(1.0) * (60 / per_minute if per_minute else 0.0)
        prompt = prompt_ids(model, length, 7000 + number + 100 * seed)
        requests.append(Request(prompt, max_tokens, arrival))
    return requests


def fill_requests(model: str, seed: int) -> list[Request]:
    """Draw requests that together touch all the KV memory that is planned for."""
    prompts = [prompt_ids(model, FILL_PROMPT, seed * 1000 + slot) for slot in range(SLOTS)]
    return [Request(prompt, FILL_NEW, 0.0) for prompt in prompts]


def kind_and_size(workload: str) -> tuple[str, int]:
    """Split a name: `decode-b16` is ("decode", 16), `prefill-512` ("prefill", 512).

    `poisson-96` is ("poisson", 96), requests a minute; `first` and `fill` are what a fresh process
    is asked.

    Raises:
      ValueError: there is no such workload.
    """
    kind, _, size = workload.partition("-")
    if workload in ("served", "first", "fill"):
        return workload, 0
    digits = size.removeprefix("b") if kind == "decode" else size
    if kind not in ("decode", "prefill", "poisson") or not digits.isdigit() or int(digits) == 0:
        raise ValueError(f"no workload is named {workload!r}")
    return kind, int(digits)
