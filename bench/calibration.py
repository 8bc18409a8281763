"""What does int4 cost the built-in model, by plain rounding and after calibration?

    python -m bench.calibration --json FILE

Loss is nats per token of text that rtp-tiny was not trained on, in float32; calibration reads text
of the kind that it was.  All matrices are quantized by `rtp-jax-ckpt quantize` as it stands.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.record import write_record
from checkpoints_tools.main import main as checkpoint_command
from rtp_jax import Engine, SamplingParams
from tools.rtp_tiny.corpus import documents, held_out_sample

RTP_TINY = Path(__file__).parents[1] / "rtp_jax" / "assets" / "rtp-tiny"
LENGTH = 250  # tokens of a text, about as many as the model was trained to look back on
DOCUMENTS, CHARACTERS = 100, 1500  # to calibrate on, and of each
SCHEMES = {
    "int4": ["--scheme", "int4"],
    "awq": ["--scheme", "awq"],
    "gptq": ["--scheme", "gptq"],
    "gptq --act-order": ["--scheme", "gptq", "--act-order"],
}
PACKAGES = ("jax", "jaxlib", "numpy")


def write_text(path: Path) -> Path:
    """Write text of the kind that the built-in model has learned, none of it held out."""
    found = [text for _, text in documents(held_out=False)]
    lines = [json.dumps({"text": t[:CHARACTERS]}) for t in found[:: len(found) // DOCUMENTS]]
    path.write_text("\n".join(lines))
    return path


def quantized(name: str, out: Path, text: Path) -> Path:
    """Quantize the built-in model."""
    more = [] if name == "int4" else ["--calibration", str(text)]
    with contextlib.redirect_stdout(sys.stderr):
        assert checkpoint_command(["quantize", "rtp-tiny", str(out), *SCHEMES[name], *more]) == 0
    return out


def loss(model: Path, cache: str | None) -> float:
    """Ask the engine for its loss on all held-out texts."""
    options = {"dtype": "float32", "deterministic": True, "max_num_batched_tokens": 256}
    options["native"] = "off"  # which would round inputs of int4
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    with Engine(str(model), compile_cache=cache, **options) as engine:
        ids = [engine.tokenizer.encode(one)[:LENGTH] for one in held_out_sample()]
        outputs = engine.generate(ids, params, use_tqdm=False)
    positions = [position for one in outputs for position in one.prompt_logprobs[1:]]
    return -float(np.mean([next(iter(position.values())).logprob for position in positions]))


def main(options: argparse.Namespace) -> None:
    """Measure, print, and write down."""
    plain = loss(RTP_TINY, options.compile_cache)
    figures = {"as it is": plain}
    print(f"| scheme | nats a token | |\n|---|---|---|\n| as it is | {plain:.4f} | |", flush=True)
    with tempfile.TemporaryDirectory() as work:
        text = write_text(Path(work) / "text.jsonl")
        for name in SCHEMES:
            folder = quantized(name, Path(work) / name.replace(" ", ""), text)
            figures[name] = found = loss(folder, options.compile_cache)
            print(f"| `{name}` | {found:.4f} | {found / plain - 1:+.2%} |", flush=True)
    if options.json:
        write_record(options.json, "calibration", PACKAGES, {"loss": figures})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compile-cache", metavar="FOLDER")
    parser.add_argument("--json", metavar="FILE")
    main(parser.parse_args())
