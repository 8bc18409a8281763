"""What an engine says about itself: which model it serves, and how busy it is."""

from dataclasses import dataclass

from rtp_jax.sampling_params import SamplingParams


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """The model of an engine, as a client may know it."""

    name: str
    architecture: str
    vocab_size: int
    max_model_len: int  # tokens of prompt and output together
    dtype: str
    kv_dtype: str
    page_size: int  # tokens
    num_pages: int  # the null page included
    max_num_seqs: int
    eos_token_ids: tuple[int, ...]
    default_sampling_params: SamplingParams
    fingerprint: str  # of the checkpoint
    epoch: str  # one life of this engine
    platform: str
    tensor_parallel_size: int  # devices that share the model
    num_parameters: int
    buckets: tuple[str, ...]  # tokens x sequences of each compiled step


@dataclass(frozen=True, kw_only=True, slots=True)
class Loads:
    """How busy an engine is, now."""

    num_running: int  # sequences
    num_waiting: int
    num_pages: int  # the null page not counted
    num_free_pages: int  # free at once; evictable ones not counted
    num_cached_pages: int  # remembered by the prefix index, unused, evictable
    page_size: int
    max_num_seqs: int
    num_open_requests: int
    num_offers: int = 0  # prompts whose pages are held for other workers
