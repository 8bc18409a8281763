"""`rtp-jax cluster`: workers and routers of one service, brought up, looked at, scaled, ended.

    rtp-jax cluster up cluster.yaml [--detach]     until Ctrl-C, SIGTERM or `down`
    rtp-jax cluster status
    rtp-jax cluster scale decode=3
    rtp-jax cluster restart                        every worker, one after the other
    rtp-jax cluster down

`up` is the controller (`running.py`); the others write to its folder what they want, and read there
what became of it.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rtp_jax.environment import cluster_states
from rtp_jax.errors import InvalidArgument, Unavailable
from rtp_jax.serving.cluster.folder import LOG, Folder, the_one
from rtp_jax.serving.cluster.running import keep_up, notes, problems
from rtp_jax.serving.cluster.spec import MAX_COUNT, read_spec
from rtp_jax.serving.flags import parse
from rtp_jax.serving.logs import log_to_stderr
from rtp_jax.serving.serve_command import say

LOOK_S = 0.1
COLUMNS = ("replica", "role", "state", "address", "epoch", "starts")
SCALE = re.compile(r"([a-z0-9-]+)=(\d{1,5})")


def cluster(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Run one of the commands."""
    parser.add_argument("action", choices=ACTIONS, metavar="up|status|scale|restart|down")
    action = next((words for words in arguments if words in ACTIONS), None)
    parser.add_argument("--state", metavar="DIR", help="folder of the clusters' state")
    if action == "up":
        parser.add_argument("file", metavar="FILE", help="what should run; see docs/cluster.md")
        parser.add_argument("--detach", action="store_true", help="return when everything serves")
    else:
        parser.add_argument("--name", metavar="NAME", help="which cluster; without it the only one")
    if action == "scale":
        parser.add_argument("counts", nargs="+", metavar="GROUP=N", help="replicas of a group")
    if action == "status":
        parser.add_argument("--json", action="store_true", help="as JSON")
    parsed = parse(parser, arguments)
    clusters = Path(parsed.state) if parsed.state else cluster_states()
    return ACTIONS[parsed.action](parsed, clusters)


def _up(parsed: argparse.Namespace, clusters: Path) -> int:
    spec = read_spec(Path(parsed.file))
    folder = Folder(clusters, spec.name)
    if parsed.detach:
        return _detach(parsed.file, folder, clusters)
    log_to_stderr(as_json=False)
    say(f"cluster {spec.name}: state in {folder.path}")
    keep_up(spec, folder, say)
    return 0


def _detach(file: str, folder: Folder, clusters: Path) -> int:
    """Start a controller that outlives this command, and wait until all of it serves."""
    folder.make()
    with folder.held():  # or say now that somebody else has it
        folder.forget()
    command = [sys.executable, "-m", "rtp_jax.serving.main", "cluster", "up", file]
    with (folder.path / LOG).open("w") as log:
        popen = subprocess.Popen(
            [*command, "--state", str(clusters)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while popen.poll() is None:
        status = folder.status()
        if status and problems(status):
            raise _failed(folder, "; ".join(problems(status)))
        if status and status["ready"]:
            print(as_text(status))
            return 0
        time.sleep(LOOK_S)
    raise _failed(folder, (folder.path / LOG).read_text()[-2000:].strip())


def _failed(folder: Folder, reason: str) -> Unavailable:
    return Unavailable(
        f"RTPJ-5629 CLUSTER_INCOMPLETE: not all of cluster {folder.name} serves: {reason}. Logs are"
        f" in {folder.logs}; what does run ends with rtp-jax cluster down {folder.flags}."
    )


def _status(parsed: argparse.Namespace, clusters: Path) -> int:
    folder = the_one(clusters, parsed.name)
    status = _wait(folder, lambda status: True)
    print(json.dumps(status, indent=1) if parsed.json else as_text(status))
    return 0


def _scale(parsed: argparse.Namespace, clusters: Path) -> int:
    folder, asked = the_one(clusters, parsed.name), {}
    counts = folder.wanted().counts  # what is reported may be older
    for words in parsed.counts:
        match = SCALE.fullmatch(words)
        if match is None or match[1] not in counts or int(match[2]) > MAX_COUNT:
            raise InvalidArgument(
                f"RTPJ-5623 GROUP_UNKNOWN: {words[:60]!r} scales nothing of {folder.name}. Write"
                f" GROUP=N, where GROUP is one of {', '.join(counts)} and N at most {MAX_COUNT}.",
                field="counts",
            )
        asked[match[1]] = int(match[2])
    folder.change(lambda wanted: replace(wanted, counts={**wanted.counts, **asked}))
    return _settle(folder, asked, lambda status: asked.items() <= status["wanted"].items())


def _restart(parsed: argparse.Namespace, clusters: Path) -> int:
    folder = the_one(clusters, parsed.name)
    wanted = folder.change(lambda wanted: replace(wanted, num_restarts=wanted.num_restarts + 1))
    number = wanted.num_restarts
    return _settle(folder, wanted.counts, lambda status: status["num_restarts"] >= number)


def _settle(
    folder: Folder, counts: Mapping[str, int], heard: Callable[[dict[str, Any]], bool]
) -> int:
    """Wait until the controller has heard and nothing is on its way any more; show it.

    Others may ask for other things meanwhile, but not of the groups in `counts`.
    """

    def done(status: dict[str, Any]) -> bool:
        now = folder.wanted()
        if now.down or not counts.items() <= now.counts.items():
            raise _failed(folder, "something else is wanted of it meanwhile")
        return heard(status) and _settled(status)

    status = _wait(folder, done)
    print(as_text(status))
    if problems(status):
        raise _failed(folder, "; ".join(problems(status)))
    return 0


def _down(parsed: argparse.Namespace, clusters: Path) -> int:
    folder = the_one(clusters, parsed.name)
    folder.change(lambda wanted: replace(wanted, down=True))
    while folder.alive:
        time.sleep(LOOK_S)
    print(f"cluster {folder.name} has ended")
    return 0


def _settled(status: dict[str, Any]) -> bool:
    """Say whether nothing is on its way: what is wanted serves or was given up."""
    left = any(each["state"] == "draining" for each in status["replicas"])
    return bool(problems(status)) or (status["ready"] and not left and not status["rolling"])


def _wait(folder: Folder, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait for something to be reported by a controller that lives."""
    while True:
        folder.need_alive()
        status = folder.status()
        if status and done(status):
            return status
        time.sleep(LOOK_S)


def as_text(status: dict[str, Any]) -> str:
    """Show a cluster to people."""
    rows = [COLUMNS]
    rows += [
        (
            each["name"],
            each["role"],
            each["state"],
            each["address"] or "-",
            each["epoch"] or "-",
            str(each["starts"]),
        )
        for each in status["replicas"]
    ]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    lines = [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    wanted = ", ".join(f"{name}={count}" for name, count in status["wanted"].items())
    head = f"cluster {status['name']} of {status['model']} ({status['backend']}): {wanted}"
    pages = [f"{each['name']}: {each['pages']}" for each in status["replicas"] if each["pages"]]
    return "\n".join([head, "", *lines, *pages, *notes(status), *problems(status)])


ACTIONS = {"up": _up, "status": _status, "scale": _scale, "restart": _restart, "down": _down}
