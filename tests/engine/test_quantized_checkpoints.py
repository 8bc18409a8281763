"""A checkpoint that comes quantized, in a whole engine: the logprobs of its float32 twin."""

from pathlib import Path

import numpy as np
import pytest

from rtp_jax import Engine, SamplingParams
from rtp_jax.config import EngineConfig
from rtp_jax.engine.build import decide
from rtp_jax.errors import FailedPrecondition
from tests.golden.quantized_layouts import CASES, CONFIG, save, tensors_of

PROMPT = [int(i * 7919 % 500) for i in range(40)]
SMALL = {"max_num_seqs": 2, "max_num_batched_tokens": 64, "skip_tokenizer_init": True}
SMALL["deterministic"] = True  # one program to compile


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Write a checkpoint with act-order and zero points, and its twin."""
    root = tmp_path_factory.mktemp("quantized")
    case = CASES["gptq_zeros_ordered_32"]
    written, dense = tensors_of(case)
    return save(root / "gptq", written, case.config), save(root / "float32", dense, None)


def answer(folder: Path, cache: Path, **options) -> tuple[list[int], np.ndarray]:
    """Return greedy tokens and the logprobs of the prompt."""
    with Engine(str(folder), compile_cache=str(cache), **SMALL, **options) as engine:
        params = SamplingParams(temperature=0, max_tokens=8, prompt_logprobs=0, ignore_eos=True)
        (one,) = engine.generate([{"prompt_token_ids": PROMPT}], params, use_tqdm=False)
    logprobs = [next(iter(position.values())).logprob for position in one.prompt_logprobs[1:]]
    return list(one.outputs[0].token_ids), np.array(logprobs)


@pytest.mark.capability("quantized checkpoints")
@pytest.mark.parametrize(("native", "error"), [("off", 2e-4), ("auto", 0.3)])
def test_an_engine_answers_as_its_twin_does(folders, program_cache, native, error):
    """In XLA with the same numbers, and sums in another order; C++ rounds activations to int8."""
    options = {"dtype": "float32", "native": native}
    quantized, plain = (answer(folder, program_cache, **options) for folder in folders)
    assert quantized[0] == plain[0]
    np.testing.assert_allclose(quantized[1], plain[1], atol=error)


def test_a_plain_head_may_be_quantized_on_top(folders):
    def weight_bytes(head: str) -> int:
        options = EngineConfig.from_options(**SMALL, dtype="float32", head_quantization=head)
        return decide(str(folders[0]), options).memory.weight_bytes

    rows, width = CONFIG["vocab_size"], CONFIG["hidden_size"]
    saved = weight_bytes("auto") - weight_bytes("int8_dynamic")
    assert saved == rows * (width * (4 - 1) - 8)  # each row gets a scale and a sum


@pytest.mark.parametrize("options", [{"quantization": "int8"}, {"quantization": "fp8"}])
def test_what_is_quantized_is_not_quantized_again(folders, options):
    with pytest.raises(
        FailedPrecondition, match=r"RTPJ-6022 ALREADY_QUANTIZED: .*\(gptq\)"
    ) as refused:
        Engine(str(folders[0]), **SMALL, **options)
    assert refused.value.field == "quantization"


def test_a_head_that_is_quantized_is_not_quantized_again(tmp_path):
    case = CASES["packed_128"]
    folder = save(tmp_path, {"a": np.zeros(1, np.float32)}, case.config | {"ignore": []})
    with pytest.raises(FailedPrecondition, match=r"RTPJ-6022 .*head_quantization=int8") as refused:
        Engine(str(folder), **SMALL, head_quantization="int8")
    assert refused.value.field == "head_quantization"
