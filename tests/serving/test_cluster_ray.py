"""Workers that Ray places: with a Ray that is only words, and with a real one if there is one."""

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from rtp_jax.serving.cluster import ray_actors
from rtp_jax.serving.cluster.ray_actors import RaySupervisor
from rtp_jax.serving.cluster.spec import Ray, Resources
from rtp_jax.serving.cluster.supervisor import Launch, Phase
from rtp_jax.serving.main import main
from tests.serving.cluster import ROOT

ALONE = ("unshare", "--map-root-user", "--net")  # a network of its own: nothing but loopback


class ActorDied(Exception):
    """Ray's word for it."""


class Away(Exception):
    """An actor that cannot be reached, for now."""


class FakeRay:
    """As much of Ray as is asked for; a reference is a list that its answer comes into."""

    def __init__(self, hosts=("127.0.0.1",), refuses=None):
        self.hosts, self.refuses = hosts, refuses
        self.asked, self.told, self.arguments = {}, [], None
        self.answer = []
        self.exceptions = SimpleNamespace(
            ActorUnavailableError=Away,
            RayActorError=ActorDied,
            RayTaskError=ActorDied,
            RayError=ActorDied,
        )

    def init(self, **options):
        if self.refuses:
            raise self.refuses

    def nodes(self):
        return [{"NodeManagerAddress": host} for host in self.hosts]

    def shutdown(self):
        self.told.append("shutdown")

    def remote(self, cls):
        return self

    def options(self, **asked):
        self.asked = asked
        fake = self

        def method(name):
            def remote(*arguments):
                fake.told.append(name)
                return fake.answer

            return SimpleNamespace(remote=remote)

        def create(arguments):
            fake.arguments = arguments
            return SimpleNamespace(**{name: method(name) for name in ("look", "end", "kill")})

        return SimpleNamespace(remote=create)

    def wait(self, refs, timeout):
        return [ref for ref in refs if ref], []

    def get(self, ref):
        answer = ref[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, actor):
        self.told.append("ray.kill")

    def says(self, *answer) -> None:
        """Answer what is asked."""
        self.answer[:] = answer if isinstance(answer[0], Exception) else [answer]


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


LAUNCH = Launch("a", ("serve", "m"), Resources(cpus=0.5, gpus=1, memory=7), 0)


def test_a_life_in_an_actor(ray, monkeypatch):
    supervisor = RaySupervisor(Ray("auto"))
    life = supervisor.start(LAUNCH)
    assert ray.arguments == ["serve", "m", "--port", "0"]
    assert (ray.asked["num_cpus"], ray.asked["num_gpus"], ray.asked["memory"]) == (0.5, 1, 7)
    assert life.look().phase == Phase.PENDING
    ray.says("starting", "", "", None, ["loading"], 11, 12)
    assert life.look().phase == Phase.STARTING
    ray.says("serving", "h:1", "http://h:2/", None, [], 11, 12)
    assert (life.look().address, life.look().pages) == ("h:1", "http://h:2/")
    assert (life.pid, life.actor_pid) == (11, 12)
    life.end()
    assert ray.told[-1] == "end"
    ray.says(Away("no answer"))
    assert life.look().phase == Phase.SERVING  # perhaps it comes back
    ray.says("ended", "", "", 1, ["no device"], 11, 12)
    seen = life.look()
    assert (seen.phase, seen.code, seen.last_words) == (Phase.ENDED, 1, ("no device",))
    life.kill()
    assert ray.told[-2:] == ["kill", "ray.kill"]
    supervisor.close()
    assert ray.told[-1] == "shutdown"


@pytest.mark.parametrize("error", [ActorDied("the node is gone"), Away("no answer")])
def test_an_actor_that_is_lost_has_ended(ray, monkeypatch, error):
    monkeypatch.setattr(ray_actors, "AWAY_S", -1.0)
    life = RaySupervisor(Ray("auto")).start(LAUNCH)
    ray.says("serving", "h:1", "", None, ["serving m"], 11, 12)
    life.look()
    ray.says(error)
    seen = life.look()
    assert (seen.phase, seen.code) == (Phase.ENDED, None)
    assert seen.last_words == ("serving m", str(error))
    assert life.look() == seen


def test_one_that_waits_for_room_is_let_go_at_once(ray):
    life = RaySupervisor(Ray("auto")).start(LAUNCH)
    life.end()
    assert life.look().phase == Phase.ENDED
    assert "ray.kill" in ray.told


@pytest.fixture
def file(tmp_path):
    """Return a file of a cluster on Ray."""
    content = {"name": "r", "model": "rtp-tiny", "backend": "ray", "ray": {"address": "auto"}}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({**content, "groups": [{"name": "w"}]}))
    return ["cluster", "up", str(path), "--state", str(tmp_path / "state")]


def test_without_ray_its_extra_is_named(file, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(file) == 1
    assert "RTPJ-5625 RAY_NOT_INSTALLED" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ConnectionError, ActorDied])
def test_a_ray_that_is_not_there_is_named(file, ray, capsys, error):
    ray.refuses = error("Could not find any running Ray instance.\nMore.")
    assert main(file) == 1
    said = capsys.readouterr().err
    assert "RTPJ-5626 RAY_UNREACHABLE" in said
    assert "at auto: Could not find any running Ray instance." in said


def test_a_ray_that_anybody_can_reach_is_refused(file, ray, capsys, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    ray.hosts = ("10.0.0.1",)
    assert main(file) == 2
    assert "RTPJ-5627 RAY_EXPOSED" in capsys.readouterr().err
    assert ray.told == ["shutdown"]


def why_not() -> str:
    """Say why there can be no real Ray here."""
    if importlib.util.find_spec("ray") is None:
        return "Ray is not installed (pip install 'rtp_jax[ray]')"
    if not (shutil.which("unshare") and shutil.which("ip")):
        return "needs unshare and ip, for a network of its own"
    if subprocess.run([*ALONE, "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        return "a network of its own is not allowed here"
    return ""


@pytest.mark.full
@pytest.mark.timeout(900)
def test_an_actor_is_killed_and_a_node_is_removed_under_load(tiny_model, program_cache, tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    (tmp_path / "programs").symlink_to(program_cache)
    script = f"ip link set lo up && exec {sys.executable} -m tests.serving.ray_scenario"
    said = subprocess.run(
        [*ALONE, "sh", "-c", f"{script} {tiny_model} {tmp_path}"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_raylet_start_wait_time_s": "40",
        },
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-6000:]
    assert "scenario: all has ended" in said.stdout
    assert said.stdout.count("none failed") == 2
