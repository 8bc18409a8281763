"""`rtp-jax route`: the service of one worker, over many of them, until a signal.

    rtp-jax route rtp-tiny --worker 127.0.0.1:50061 --worker 127.0.0.1:50062 --port 50050
    rtp-jax route rtp-tiny --members workers.yaml

The process is that of a worker (`worker.py`) around an engine that is made of workers
(`routed.py`): the same doors, health, drain and metrics.  It needs the model's folder for its
tokenizer and chat template, and no weights.
"""

import argparse
import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rtp_jax.config import hub_cache
from rtp_jax.errors import CheckpointError, InvalidArgument
from rtp_jax.metrics import Metrics
from rtp_jax.serving.flags import add_route_settings, parse, settings_of
from rtp_jax.serving.logs import log_to_stderr
from rtp_jax.serving.members import follow, members_of, read_members
from rtp_jax.serving.quotas import read_quotas
from rtp_jax.serving.route_config import RouteConfig
from rtp_jax.serving.routed import RoutedEngine
from rtp_jax.serving.router_status import RouterStatusService, StatusSource
from rtp_jax.serving.serve_command import say
from rtp_jax.serving.status_page import metrics_of_router, pages_of
from rtp_jax.serving.worker import Worker
from rtp_jax.serving.workers import Workers
from rtp_jax.weights.fingerprint import fingerprint
from rtp_jax.weights.locate import find_model
from rtp_jax.wire import router_pb2

DESCRIPTOR = router_pb2.DESCRIPTOR.services_by_name["RouterStatus"]


def route(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Route; the process ends here, because calls of clients may still hold threads."""
    parser.add_argument("model", nargs="?", help="a folder, rtp-tiny, or a name org/model")
    parser.add_argument(
        "--worker", action="append", metavar="HOST:PORT", help="a worker; may be given again"
    )
    parser.add_argument("--served-model-name", metavar="X", help="name that the workers serve")
    parser.add_argument("--print-config", action="store_true", help="show all settings and stop")
    add_route_settings(parser)
    parsed = parse(parser, arguments)
    if parsed.worker:
        parsed.workers = ",".join([*parsed.worker, *([parsed.workers] if parsed.workers else [])])
    settings = settings_of(parsed)
    if parsed.print_config:
        print(settings.describe(route=True))
        return 0
    server = settings.server()
    log_to_stderr(as_json=server.json_logs)
    metrics = Metrics(vllm_names=server.metrics_compat == "vllm")
    plan = plan_of(settings.model, settings.route(), parsed.served_model_name)
    source = StatusSource()
    metrics_of_router(source, metrics.registry)
    worker = Worker(
        config=server,
        build=lambda: start(plan, source),
        metrics=metrics,
        say=say,
        stall_timeout_s=server.stall_timeout_s,
        services=lambda service: [(RouterStatusService(source), DESCRIPTOR)],
        pages=pages_of(source),
        routes=True,
    )
    code = worker.run()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    os._exit(code)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a router starts with, checked."""

    folder: Path
    name: str
    fingerprint: str  # empty: the folder has no weights to compare
    config: RouteConfig


def plan_of(model: str, config: RouteConfig, name: str | None) -> Plan:
    """Find the model's folder and check what was said about workers.

    Raises:
      InvalidArgument: no workers were named, or wrongly.
    """
    if config.workers is None and config.members is None:
        raise InvalidArgument(
            "RTPJ-5607 WORKERS_NOT_GIVEN: no worker was named. Give --worker HOST:PORT, again for"
            " each, or --members FILE.",
            field="workers",
        )
    members_of(config.workers)
    if config.quotas is not None:
        read_quotas(Path(config.quotas))
    if config.members is not None:
        read_members(Path(config.members))
    folder = find_model(model, hub_cache=hub_cache())
    name = name or (Path(model).name if Path(model).is_dir() else model)
    try:
        return Plan(folder, name, fingerprint(folder), config)
    except CheckpointError:  # a folder of a tokenizer alone
        return Plan(folder, name, "", config)


async def start(plan: Plan, source: StatusSource) -> RoutedEngine:
    """Connect to the workers; returns when one of them serves."""
    config = plan.config
    workers = Workers(config, model=plan.name, fingerprint=plan.fingerprint)
    named = members_of(config.workers)
    workers.set_members(named)
    source.workers = workers
    source.loop = asyncio.get_running_loop()
    if config.members is not None:
        workers.spawn(
            follow(Path(config.members), lambda listed: workers.set_members([*named, *listed]))
        )
    try:
        say(f"waiting for a worker of {plan.name}: {len(workers.links)} named")
        info = replace(await workers.model_info(), epoch=secrets.token_hex(8))
        engine = RoutedEngine(plan.folder, config, workers, info)
    except BaseException:
        await workers.close()
        raise
    source.engine = engine
    return engine
