"""`rtp-jax serve`: a model over gRPC, until a signal."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

from rtp_jax.metrics import Metrics
from rtp_jax.runner.host_memory import keep_free_memory
from rtp_jax.serving.flags import add_settings, parse, settings_of
from rtp_jax.serving.local_engine import start_engine
from rtp_jax.serving.logs import log_to_stderr
from rtp_jax.serving.settings import Settings
from rtp_jax.serving.worker import Worker, in_thread
from rtp_jax.serving.worker_state import DESCRIPTOR as WORKER_STATE
from rtp_jax.serving.worker_state import WorkerStateService

# The engine's thread shares the interpreter with the loop of gRPC and needs it a few times a step.
# With the 5 ms that Python gives by default it waits for a whole burst of messages; see
# `bench/stream_cost.py`.
SWITCH_INTERVAL_S = 0.0005


def serve(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Serve; the process ends here, because a build that was interrupted may still hold threads."""
    parser.add_argument("model", nargs="?", help="a folder, rtp-tiny, or a name org/model")
    parser.add_argument("--print-config", action="store_true", help="show all settings and stop")
    add_settings(parser, server=True)
    parsed = parse(parser, arguments)
    settings = settings_of(parsed)
    if parsed.print_config:
        print(settings.describe())
        return 0
    tune_process()
    code = worker_of(settings).run()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    os._exit(code)


def tune_process() -> None:
    """Set what Python and the C heap do for a whole process, as a server needs it."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    keep_free_memory()


def worker_of(settings: Settings) -> Worker:
    """Check all settings, and put a worker together."""
    server = settings.server()
    settings.engine_options()
    _ = settings.model
    log_to_stderr(as_json=server.json_logs)
    metrics = Metrics(vllm_names=server.metrics_compat == "vllm")
    return Worker(
        config=server,
        build=lambda: in_thread(lambda: start_engine(settings, say, metrics)),
        metrics=metrics,
        say=say,
        stall_timeout_s=server.stall_timeout_s,
        services=lambda service: [(WorkerStateService(service), WORKER_STATE)],
    )


def say(line: str) -> None:
    """Show progress at once, even through a pipe; whoever closed it is not interested."""
    with contextlib.suppress(BrokenPipeError):
        print(line, flush=True)
