"""`rtp-jax kv-layers`: which layers may keep KV in fewer bits, measured on a text.

What it prints last is a setting of `serve` and `Engine`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import rtp_jax
from rtp_jax.benchmark.options import count, number
from rtp_jax.errors import InvalidArgument
from rtp_jax.serving.flags import add_settings, parse, settings_of

BUDGET, NUM_CHARACTERS = "0.005", "8000"
MAX_FILE_BYTES = 64 << 20


def kv_layers(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Measure, print a row for each layer, and the setting."""
    parser.add_argument("model", nargs="?", help="a folder, rtp-tiny, or a name org/model")
    parser.add_argument("--text", required=True, metavar="FILE", help="what the model will read")
    words = "nats per token that the next token's distribution may move; default: " + BUDGET
    parser.add_argument("--budget", default=BUDGET, metavar="NATS", help=words)
    words = "how much of the text is read; default: " + NUM_CHARACTERS
    parser.add_argument("--characters", default=NUM_CHARACTERS, metavar="N", help=words)
    add_settings(parser, server=False)
    parsed = parse(parser, arguments)
    settings, budget = settings_of(parsed), number("--budget", parsed.budget)
    text = read_text(parsed.text)[: count("--characters", parsed.characters)]
    found = rtp_jax.Engine.choose_kv_layers(
        settings.model,
        [text],
        budget=budget,
        progress=lambda line: print(line, file=sys.stderr),
        **settings.engine_options(),
    )
    print("layer  " + "".join(f"{scheme:>12}" for scheme in found.alone[0]) + "  chosen")
    for layer, (alone, scheme) in enumerate(zip(found.alone, found.layers.schemes, strict=True)):
        figures = "".join(f"{nats:12.2e}" for nats in alone.values())
        print(f"{layer:5}  {figures}  {scheme.name}")
    print(f"together {found.divergence:.2e} nats per token, over {found.num_tokens} tokens")
    words = found.layers.describe()
    print(f"{'kv_layers' if ':' in words else 'kv_dtype'}: {words}")
    return 0


def read_text(path: str) -> str:
    """Read a text file.

    Raises:
      InvalidArgument: RTPJ-1103, it cannot be read, or is no text.
    """
    try:
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise _invalid(path, f"it has more than {MAX_FILE_BYTES} bytes")
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise _invalid(path, error.strerror or "it cannot be read") from error
    except UnicodeDecodeError as error:
        raise _invalid(path, f"byte {error.start} is no UTF-8") from error


def _invalid(path: str, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"RTPJ-1103 CALIBRATION_TEXT_INVALID: text={path!r} cannot be measured on: {reason}. Give a"
        " file with a few pages of text as the model will read it.",
        field="text",
    )
