"""The same decoder in torch, written by hand: what somebody without an engine would run.

Keys and values lie in one array for each layer, as long as the longest context; attention is
torch's own.  A step is compiled by inductor and, on a GPU, captured as one CUDA graph.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from bench.gpu.work import Sizes, Work


class Layer(NamedTuple):
    """The matrices of one layer, [out, in]."""

    qkv: torch.Tensor
    output: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class Decoder:
    """Random weights, empty keys and values, and the steps over them."""

    def __init__(self, sizes: Sizes, device: str):
        self.sizes, self.device = sizes, device
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        width = (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim
        self.layers = [
            Layer(
                self._drawn(width, sizes.hidden),
                self._drawn(sizes.hidden, sizes.heads * sizes.head_dim),
                self._drawn(2 * sizes.mlp, sizes.hidden),
                self._drawn(sizes.hidden, sizes.mlp),
            )
            for _ in range(sizes.layers)
        ]
        self.head = self._drawn(sizes.vocab, sizes.hidden)
        self.embedding = self.head if sizes.tied else self._drawn(sizes.vocab, sizes.hidden)
        self.norm = torch.ones(sizes.hidden, dtype=self.dtype, device=device)

    def _drawn(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=self.dtype, device=self.device).mul_(0.02)

    def empty_kv(self, work: Work) -> torch.Tensor:
        """Allocate keys and values: [layers, 2, batch, kv_heads, length, head_dim]."""
        sizes, length = self.sizes, work.before + work.new
        shape = (sizes.layers, 2, work.batch, sizes.kv_heads, length, sizes.head_dim)
        return torch.randn(shape, dtype=self.dtype, device=self.device)

    def step(self, ids: torch.Tensor, kv: torch.Tensor, work: Work) -> torch.Tensor:
        """Run `work` on ids [batch, new]; returns the most likely next token of each sequence."""
        sizes, x = self.sizes, self.embedding[ids]
        position = torch.arange(work.before, work.before + work.new, device=self.device)
        half = torch.arange(0, sizes.head_dim, 2, device=self.device) / sizes.head_dim
        angle = position[:, None] * (500000.0**-half)[None]
        turn = torch.cos(angle).to(x.dtype), torch.sin(angle).to(x.dtype)
        seen = None
        if work.new > 1 and work.before:
            every = torch.arange(work.before + work.new, device=self.device)
            seen = every[None, :] <= position[:, None]
        for layer, (keys, values) in zip(self.layers, kv, strict=True):
            x = x + self._attend(self._normed(x), layer, (keys, values), turn, seen, work)
            gate, up = F.linear(self._normed(x), layer.gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        return F.linear(self._normed(x[:, -1]), self.head).argmax(-1)

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (self.sizes.hidden,), self.norm)

    def _attend(self, x, layer: Layer, kv, turn, seen, work: Work) -> torch.Tensor:
        sizes = self.sizes
        heads = (sizes.heads, sizes.kv_heads, sizes.kv_heads)
        parts = F.linear(x, layer.qkv).unflatten(-1, (-1, sizes.head_dim)).split(heads, 2)
        query, key, value = (part.transpose(1, 2) for part in parts)
        query, key = _turned(query, turn), _turned(key, turn)
        keys, values = kv
        keys[:, :, work.before :] = key
        values[:, :, work.before :] = value
        is_causal = work.new > 1 and not work.before
        mixed = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=seen, is_causal=is_causal, enable_gqa=True
        )
        return F.linear(mixed.transpose(1, 2).flatten(2), layer.output)


def _turned(x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    cos, sin = turn
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def runnable(decoder: Decoder, work: Work) -> Callable[[], torch.Tensor]:
    """Prepare a step that can be run again and again, compiled and captured on a GPU."""
    ids = torch.ones((work.batch, work.new), dtype=torch.int64, device=decoder.device)
    kv = decoder.empty_kv(work)

    def run() -> torch.Tensor:
        return decoder.step(ids, kv, work)

    if decoder.device != "cuda":
        return run
    compiled = torch.compile(run, dynamic=False)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles and warms up outside of the graph
        for _ in range(3):
            compiled()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = compiled()

    def replay() -> torch.Tensor:
        graph.replay()
        return out

    return replay
