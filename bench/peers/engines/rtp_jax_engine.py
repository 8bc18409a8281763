"""rtp_jax through its Python API: threads for one batch, an asyncio loop for the served mix."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from bench.peers import figures
from bench.peers.worker import Spec, answer
from bench.peers.workloads import KV_TOKENS, MAX_LEN, SLOTS, Request
from rtp_jax import Engine, SamplingParams
from rtp_jax.sampling_params import OutputKind

PAGE_SIZE = 16
QUANTIZATION = {  # of the layers, and of the head
    "bf16": (None, "auto"),
    "int8": ("int8_dynamic", "auto"),
    "int4": ("int4", "auto"),
    "int4-pure": ("int4", "int4"),
}


def greedy(max_tokens: int) -> SamplingParams:
    """Ask for exactly so many tokens."""
    return SamplingParams(
        temperature=0.0, max_tokens=max_tokens, ignore_eos=True, output_kind=OutputKind.DELTA
    )


class RtpJax:
    """One engine, with all its cores."""

    def __init__(self, spec: Spec):
        """Load and compile; programs are kept in the scratch folder."""
        layers, head = QUANTIZATION[spec.precision]
        self._engine = Engine(
            str(Path(spec.scratch) / "models" / spec.model),
            dtype="bfloat16",
            quantization=layers,
            head_quantization=head,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            max_model_len=MAX_LEN,
            max_num_seqs=SLOTS,
            page_size=PAGE_SIZE,
            num_pages=KV_TOKENS // PAGE_SIZE + 1,
            compile_cache=str(Path(spec.scratch) / "programs"),
        )

    def versions(self) -> dict[str, str]:
        """Name the libraries that compute."""
        return {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}

    def prefill(self, prompt: list[int]) -> float:
        """Time a request for one token."""
        began = time.perf_counter()
        self._engine.generate([prompt], greedy(1), use_tqdm=False)
        return time.perf_counter() - began

    def _times(self, prompt: list[int], num_new: int) -> list[float]:
        times: list[float] = []
        for output in self._engine.stream(prompt, greedy(num_new)):
            times += [time.perf_counter()] * len(output.outputs[0].token_ids)
        return times

    def decode(self, prompts: list[list[int]], num_new: int) -> tuple[int, float]:
        """Stream each prompt to a thread and count while all of them decode."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            streams = list(pool.map(lambda prompt: self._times(prompt, num_new), prompts))
        return figures.steady(streams)

    def serve(self, requests: list[Request]) -> list[list[float]]:
        """Stream each request to a coroutine, as a server does."""
        return asyncio.run(self._serve(requests))

    async def _serve(self, requests: list[Request]) -> list[list[float]]:
        began = time.perf_counter()

        async def one(request: Request) -> list[float]:
            await asyncio.sleep(began + request.arrival_s - time.perf_counter())
            times: list[float] = []
            prompt = {"prompt_token_ids": request.prompt}
            async for output in self._engine.stream_async(prompt, greedy(request.max_tokens)):
                times += [time.perf_counter() - began] * len(output.outputs[0].token_ids)
            return times

        return list(await asyncio.gather(*(one(request) for request in requests)))

    def close(self) -> None:
        """Give the memory back."""
        self._engine.close()


if __name__ == "__main__":
    answer(RtpJax)
