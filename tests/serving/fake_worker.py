"""A worker process around the fake engine:  python -m tests.serving.fake_worker [OPTIONS]

--load-s S      building takes so long
--fail          building fails
--die-after S   the engine's loop ends
--stick-after S its loop gets stuck
"""

import argparse
import os
import sys
import threading
import time
from dataclasses import replace

from rtp_jax.config import ServerConfig
from rtp_jax.errors import RtpError, Unavailable
from rtp_jax.metrics import Metrics
from rtp_jax.serving.logs import log_to_stderr
from rtp_jax.serving.serve_command import say
from rtp_jax.serving.worker import Worker, in_thread
from tests.serving.fake_engine import FakeEngine


def main() -> int:
    """Run the worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--http-port", type=int)
    parser.add_argument("--load-s", type=float, default=0.0)
    parser.add_argument("--fail", action="store_true")
    parser.add_argument("--die-after", type=float)
    parser.add_argument("--stick-after", type=float)
    parser.add_argument("--retire-after", type=float)
    parser.add_argument("--drain-timeout-s", type=float, default=10.0)
    parser.add_argument("--stall-timeout-s", type=float, default=0.5)
    options = parser.parse_args()
    log_to_stderr(as_json=False)
    worker = Worker(
        config=replace(
            ServerConfig(port=options.port, metrics_port=0),
            http_port=options.http_port,
            drain_timeout_s=options.drain_timeout_s,
        ),
        build=lambda: in_thread(lambda: build(options)),
        metrics=Metrics(),
        say=say,
        stall_timeout_s=options.stall_timeout_s,
        services=lambda service: (),
    )
    try:
        return worker.run()
    except RtpError as error:
        print(error, file=sys.stderr)
        return 1


def build(options: argparse.Namespace) -> FakeEngine:
    """Take the time to build an engine, and plan its end."""
    time.sleep(options.load_s)
    if options.fail:
        raise Unavailable("RTPJ-9999 NO_DEVICE: none. Add one.")
    engine = FakeEngine()
    if options.die_after is not None:
        threading.Timer(options.die_after, lambda: setattr(engine, "alive", False)).start()
    if options.stick_after is not None:
        threading.Timer(
            options.stick_after, lambda: setattr(engine, "stuck_since_s", time.monotonic())
        ).start()
    if options.retire_after is not None:
        threading.Timer(
            options.retire_after, lambda: setattr(engine.transfer, "retires", "RTPJ-4315 stuck")
        ).start()
    return engine


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
