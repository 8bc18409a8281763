"""Replicas on the machines of a Ray cluster: an actor owns each process.

Ray finds a node with room, starts the actor there, and says when it is gone.  The worker stays a
plain process with a port; no token and no page goes through Ray.  Actors end with the controller
that started them, and processes end with their actor (`tied.py`).  Ray must be there already, and
must ask for tokens where others can reach it: whoever reaches it can run anything.
"""

import os
import time
from typing import Any

from rtp_jax.environment import no_ray_statistics, ray_has_token
from rtp_jax.errors import FailedPrecondition, InvalidArgument, Unavailable
from rtp_jax.serving.cluster.processes import OwnedProcess
from rtp_jax.serving.cluster.spec import Ray
from rtp_jax.serving.cluster.supervisor import Launch, Look, Phase
from rtp_jax.transfer.hosts import is_loopback

KILL_S = 2.0
AWAY_S = 10.0  # an actor that cannot be reached for so long is gone
NEVER_RAN = "Ray lost the actor before it said anything"


class Owner:
    """The actor: owns one process on the node where Ray put it, and listens there."""

    def __init__(self, arguments: list[str]):
        if "--host" not in arguments:
            arguments = [*arguments, "--host", _ray().util.get_node_ip_address()]
        self._process = OwnedProcess(arguments, {}, None)

    def look(self) -> tuple[str, str, str, int | None, list[str], int, int]:
        """Say how the process is, its number, and our own."""
        seen = self._process.look()
        words = list(seen.last_words)
        numbers = self._process.pid, os.getpid()
        return str(seen.phase), seen.address, seen.pages, seen.code, words, *numbers

    def end(self) -> None:
        """Let the process finish what it has and end."""
        self._process.end()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()


class RaySupervisor:
    """Starts actors in the Ray cluster that is at an address."""

    def __init__(self, wanted: Ray):
        """Connect.

        Raises:
          FailedPrecondition: Ray is not installed.
          Unavailable: no Ray is there.
          InvalidArgument: everybody who reaches it could run anything there.
        """
        self._ray = _ray()
        try:
            self._ray.init(address=wanted.address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError, self._ray.exceptions.RayError) as error:
            reason = (str(error).strip() or error.__class__.__name__).splitlines()[0]
            raise Unavailable(
                f"RTPJ-5626 RAY_UNREACHABLE: there is no Ray at {wanted.address}: {reason[:200]}."
                " Start it (`ray start --head`), or correct ray.address.",
                field="ray",
            ) from error
        try:
            hosts = [str(node["NodeManagerAddress"]) for node in self._ray.nodes()]
            check_reach(hosts, has_token=ray_has_token(), insecure=wanted.insecure)
        except InvalidArgument:
            self._ray.shutdown()
            raise

    def start(self, launch: Launch) -> "RayLife":
        """Ask Ray for an actor; it may take its time."""
        assert not launch.environment, "no secret goes through Ray: see spec.py"
        asked = launch.resources
        arguments = [*launch.arguments, "--port", str(launch.port)]
        actor = self._ray.remote(Owner).options(
            num_cpus=asked.cpus,
            num_gpus=asked.gpus,
            memory=asked.memory or None,
            max_restarts=0,  # the controller restarts, and counts
            scheduling_strategy="SPREAD",  # so that a lost node takes few workers with it
        )
        return RayLife(self._ray, actor.remote(arguments))

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()


class RayLife:
    """One actor, as seen from here."""

    def __init__(self, ray: Any, actor: Any):
        self._ray = ray
        self._actor = actor
        self._asked = actor.look.remote()
        self._seen = Look(Phase.PENDING)
        self._away_since_s: float | None = None
        self.pid = self.actor_pid = 0

    def look(self) -> Look:
        """Say how it was when it answered last; ask again."""
        if self._seen.phase == Phase.ENDED:
            return self._seen
        done, _ = self._ray.wait([self._asked], timeout=0)
        if done:
            self._hear()
            self._asked = self._actor.look.remote()
        return self._seen

    def end(self) -> None:
        """Let the process finish what it has and end."""
        if self._seen.phase == Phase.PENDING:
            self.kill()
        else:
            self._actor.end.remote()

    def kill(self) -> None:
        """End the process and its actor."""
        if self._seen.phase != Phase.PENDING:
            self._ray.wait([self._actor.kill.remote()], timeout=KILL_S)
        self._ray.kill(self._actor)  # if it did not hear us, its process ends with it
        if self._seen.phase != Phase.ENDED:
            self._seen = Look(Phase.ENDED, last_words=self._seen.last_words)

    def _hear(self) -> None:
        errors = self._ray.exceptions
        try:
            phase, address, pages, code, words, self.pid, self.actor_pid = self._ray.get(
                self._asked
            )
        except errors.ActorUnavailableError as error:
            now_s = time.monotonic()
            self._away_since_s = self._away_since_s or now_s
            if now_s - self._away_since_s > AWAY_S:
                self._lost(error)
            return
        except (errors.RayActorError, errors.RayTaskError) as error:
            self._lost(error)
            return
        self._away_since_s = None
        self._seen = Look(Phase(phase), address, pages, code, tuple(words))

    def _lost(self, error: Exception) -> None:
        reason = (str(error).strip() or NEVER_RAN).splitlines()
        words = (*self._seen.last_words, *reason[:5])
        self._seen = Look(Phase.ENDED, last_words=words)


def check_reach(hosts: list[str], *, has_token: bool, insecure: bool) -> None:
    """Refuse a Ray that others can reach and that asks them for no token.

    Raises:
      InvalidArgument: this one is like that, and nobody insists.
    """
    exposed = [host for host in hosts if not is_loopback(host)]
    if exposed and not has_token and not insecure:
        raise InvalidArgument(
            f"RTPJ-5627 RAY_EXPOSED: Ray listens on {exposed[0]} and asks nobody for a token, so"
            " whoever reaches it can run anything there. Start all of it with RAY_AUTH_MODE=token"
            " (and this command, too), or set ray.insecure on a network of your own.",
            field="ray",
        )


def _ray() -> Any:
    no_ray_statistics()
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise FailedPrecondition(
            "RTPJ-5625 RAY_NOT_INSTALLED: `backend: ray` needs Ray, which is not installed. Install"
            " the extra: pip install 'rtp_jax[ray]'.",
            field="backend",
        ) from error
    return ray
