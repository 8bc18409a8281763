"""transformers: `generate` for one batch, its own continuous batching for the served mix."""

import os
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.streamers import BaseStreamer

from bench.peers import figures
from bench.peers.worker import Spec, answer
from bench.peers.workloads import KV_TOKENS, SLOTS, Request

BLOCK = 256
STEP_TOKENS = 512


class Times(BaseStreamer):
    """Notes when each token of the batch came; the prompt comes first and is left out."""

    def __init__(self):
        """Start empty."""
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the tokens of one step."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing more comes."""


class Transformers:
    """One model."""

    def __init__(self, spec: Spec):
        """Load it."""
        torch.set_num_threads(spec.threads)
        torch.set_grad_enabled(False)
        self._model = AutoModelForCausalLM.from_pretrained(
            Path(spec.scratch) / "models" / spec.model,
            dtype=torch.bfloat16,
            attn_implementation="sdpa",
        ).eval()

    def versions(self) -> dict[str, str]:
        """Name the libraries."""
        return {"transformers": transformers.__version__, "torch": torch.__version__}

    def _generate(self, prompts: list[list[int]], num_new: int) -> list[float]:
        ids, streamer = torch.tensor(prompts), Times()
        config = GenerationConfig(
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        self._model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=streamer
        )
        return streamer.times[1:]

    def prefill(self, prompt: list[int]) -> float:
        """Time a call for one token."""
        began = time.perf_counter()
        return self._generate([prompt], 1)[0] - began

    def decode(self, prompts: list[list[int]], num_new: int) -> tuple[int, float]:
        """All rows step together."""
        return figures.steady([self._generate(prompts, num_new)] * len(prompts))

    def serve(self, requests: list[Request]) -> list[list[float]]:
        """Hand requests to a running batch manager, which notes the time of every token."""
        config = GenerationConfig(
            max_new_tokens=128, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        batching = ContinuousBatchingConfig(
            num_blocks=KV_TOKENS // BLOCK,
            page_size=BLOCK,
            max_batch_tokens=STEP_TOKENS,
            max_requests_per_batch=SLOTS,
            allow_block_sharing=False,
        )
        with self._model.continuous_batching_context_manager(
            generation_config=config, continuous_batching_config=batching
        ) as batch:
            batch.add_request(requests[0].prompt[:32], max_new_tokens=4, eos_token_id=-1)
            while batch.get_result(timeout=1) is None:  # one that warms up
                pass
            began = time.perf_counter()
            for number, request in enumerate(requests):
                time.sleep(max(0.0, began + request.arrival_s - time.perf_counter()))
                batch.add_request(
                    request.prompt,
                    request_id=f"served-{number}",
                    max_new_tokens=request.max_tokens,
                    record_timestamps=True,
                    eos_token_id=-1,
                )
            done = {}
            while len(done) < len(requests):
                output = batch.get_result(timeout=1)
                if output is not None and output.is_finished():
                    done[output.request_id] = output
        outputs = [done[f"served-{number}"] for number in range(len(requests))]
        return [[moment - began for moment in output.timestamps] for output in outputs]

    def close(self) -> None:
        """Nothing to do: the process ends."""


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    answer(Transformers)
