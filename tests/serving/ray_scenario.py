"""What happens to workers that Ray placed:  python -m tests.serving.ray_scenario MODEL FOLDER

Run by `test_cluster_ray.py` where there is no network but the loopback, because Ray listens at the
address of its machine.  Two nodes and a head are started here; the cluster on them is under load
while an actor is killed, and then a node with all that is on it.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from rtp_jax.environment import no_ray_statistics
from tests.engine.workload import SMALL
from tests.serving.placed import Placed, content, under_load

NUM_TRIES = 4
STORE = 80 << 20  # bytes; no page and no token goes through it


def main(model: Path, folder: Path) -> None:
    """Play it; an assertion is the verdict."""
    no_ray_statistics()
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
    ray = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    placed = None
    try:
        nodes = [
            patiently(lambda: ray.add_node(num_cpus=2, object_store_memory=STORE)) for _ in range(2)
        ]
        say("ray is up")
        about = {"address": ray.address}
        more = {"backend": "ray", "ray": about}
        options = {**SMALL, "host": "127.0.0.1"}
        placed = Placed(content(model, folder / "programs", {"both": 2}, options, **more), folder)
        placed.until_ready(2)
        say("two workers serve")
        done = under_load(placed, lambda: kill_an_actor(placed))
        say(f"an actor was killed, {done} requests came through, none failed")
        done = under_load(placed, lambda: remove_a_node(ray, nodes, placed))
        say(f"a node was removed, {done} requests came through, none failed")
        placed.down()
        say("all has ended")
    finally:
        if placed is not None:
            placed.stop()
        ray.shutdown()


def patiently(start: Callable[[], Any]) -> Any:
    """Start a part of Ray, which gives its own helpers 15 s: little on a busy machine."""
    for left in reversed(range(NUM_TRIES)):
        try:
            return start()
        except Exception as error:  # the class that Ray raises is this one
            if not left:
                raise
            say(f"ray did not start: {str(error)[:80]}")


def kill_an_actor(placed: Placed) -> None:
    """Kill the process of an actor; its worker drains and ends, and another comes."""
    began_s, before = time.monotonic(), placed.workers()["both-0"]
    os.kill(before["actor_pid"], signal.SIGKILL)
    placed.until_again("both-0", before["epoch"], 2)
    say(f"back in service after {time.monotonic() - began_s:.1f} s")
    assert placed.workers()["both-0"]["starts"] == 2


def remove_a_node(ray: Cluster, nodes: list, placed: Placed) -> None:
    """Kill a node and the workers on it, as when a machine is lost."""
    began_s, before = time.monotonic(), placed.workers()
    raylet = nodes[0].all_processes["raylet"][0].process.pid
    on_it = [name for name, each in before.items() if is_child(each["actor_pid"], raylet)]
    assert on_it, "no worker is on the node"
    ray.remove_node(nodes[0], allow_graceful=False)
    for name in on_it:
        os.kill(before[name]["pid"], signal.SIGKILL)
    for name in on_it:
        placed.until_again(name, before[name]["epoch"], 2)
    say(f"{len(on_it)} back in service after {time.monotonic() - began_s:.1f} s")


def is_child(pid: int, parent: int) -> bool:
    """Say whether a process was started by another."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == parent


def say(line: str) -> None:
    """Show how far it is."""
    print(f"scenario: {line}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
