"""What `bench latency` and `bench throughput` share: an engine in this process, and its record."""

import argparse
import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

from rtp_jax.benchmark.report import check_writable, origin
from rtp_jax.benchmark.workload import Planned
from rtp_jax.sampling_params import OutputKind, SamplingParams
from rtp_jax.serving.flags import add_settings, settings_of
from rtp_jax.serving.local_engine import start_engine
from rtp_jax.serving.settings import Setting, Settings

PACKAGES = ("rtp_jax", "jax", "jaxlib", "flax", "numpy")
CHOSEN = "the benchmark"  # who chose a setting
INFO = ("name", "architecture", "dtype", "kv_dtype", "platform", "num_parameters", "max_model_len")
INFO += ("page_size", "num_pages", "max_num_seqs", "buckets", "fingerprint")


def add_engine(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """Add the flags of the model, the engine and the record."""
    parser.add_argument("model", help="a folder, rtp-tiny, or a name org/model")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    parser.add_argument("--rounds", metavar="N", help=f"default: {rounds}; one more warms up")
    add_settings(parser, server=False)


def settings_for(parsed: argparse.Namespace, *, with_text: bool, num_seqs: int = 1) -> Settings:
    """Gather the settings; what nobody chose suits the benchmark.

    Args:
      parsed: the command line.
      with_text: False: no tokenizer is loaded, as there is no text.
      num_seqs: how many sequences must run at once, if the default is fewer.
    """
    check_writable("--json", parsed.json)
    found = dict(settings_of(parsed).of)
    if not with_text:
        _prefer(found, "skip_tokenizer_init", True)
    default = found["max_num_seqs"].value
    assert isinstance(default, int)
    if num_seqs > default:
        _prefer(found, "max_num_seqs", num_seqs)
    return Settings(found)


def seed_of(settings: Settings) -> int:
    """Return the seed of the token ids, which is the engine's."""
    seed = settings.of["seed"].value
    assert isinstance(seed, int)
    return seed


@contextlib.contextmanager
def measured_engine(bench: str, settings: Settings) -> Iterator[tuple[Any, dict[str, object]]]:
    """Start an engine, and a record of the run to which figures are added."""
    settings.engine_options()  # a wrong one is refused before anything else
    record = origin(bench, PACKAGES)
    began = time.perf_counter()
    with start_engine(settings, lambda line: print(line, file=sys.stderr, flush=True)) as engine:
        record["start_s"] = time.perf_counter() - began
        record["engine"] = {name: getattr(engine.info, name) for name in INFO}
        record["settings"] = {
            name: setting.value
            for name, setting in settings.of.items()
            if setting.source != "default"
        }
        yield engine, record
    # Kibibytes on Linux; of this process since its start, so that loading is in it.
    record["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def greedy(request: Planned, kind: OutputKind) -> SamplingParams:
    """Spell how a request's tokens are chosen: just as many as planned."""
    return SamplingParams(
        temperature=0.0, max_tokens=request.num_output_tokens, ignore_eos=True, output_kind=kind
    )


def _prefer(found: dict[str, Setting], name: str, value: object) -> None:
    if found[name].source == "default":
        found[name] = Setting(value, CHOSEN)
