"""Who holds a cluster, and what is asked of it."""

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest

from rtp_jax.environment import cluster_states
from rtp_jax.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from rtp_jax.serving.cluster import folder as folder_module
from rtp_jax.serving.cluster import running as running_module
from rtp_jax.serving.cluster.command import COLUMNS
from rtp_jax.serving.cluster.controller import Wanted
from rtp_jax.serving.cluster.folder import Folder, running, the_one
from rtp_jax.serving.cluster.ray_actors import check_reach
from rtp_jax.serving.main import main
from tests.serving.routers import until


@pytest.fixture(autouse=True)
def handlers():
    """Leave the handlers of signals as they were."""
    before = {number: signal.getsignal(number) for number in running_module.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def folder(tmp_path):
    made = Folder(tmp_path, "demo")
    made.make()
    return made


def test_a_cluster_is_held_once(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "LOCK_S", 0.1)
    assert not folder.alive
    with folder.held():
        assert folder.alive
        assert running(tmp_path) == ["demo"]
        assert the_one(tmp_path, None).path == folder.path
        with pytest.raises(AlreadyExists, match="RTPJ-5621 CLUSTER_RUNNING"), folder.held():
            pass
    assert not folder.alive
    with folder.held():
        pass


def test_a_cluster_that_is_not_up_is_named(folder, tmp_path):
    for name in ("demo", "other", None):
        with pytest.raises(NotFound, match="RTPJ-5622 CLUSTER_NOT_RUNNING"):
            the_one(tmp_path, name)
    two = Folder(tmp_path, "two")
    two.make()
    with folder.held(), two.held(), pytest.raises(NotFound, match="demo, two"):
        the_one(tmp_path, None)
    assert running(tmp_path / "absent") == []


def test_the_folder_is_for_its_user_alone(tmp_path):
    (tmp_path / "demo").mkdir(mode=0o755)
    made = Folder(tmp_path, "demo")
    made.make()
    assert made.path.stat().st_mode & 0o777 == made.logs.stat().st_mode & 0o777 == 0o700
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FailedPrecondition, match=r"RTPJ-5628 STATE_FOLDER_UNSAFE.* is a link"):
        Folder(tmp_path, "link").make()


@pytest.mark.parametrize("error", [None, PermissionError("no"), OSError("not here")])
def test_a_folder_that_stays_open_to_others_is_refused(tmp_path, monkeypatch, error):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo").chmod(0o777)

    def chmod(self, mode):
        if error is not None:
            raise error

    monkeypatch.setattr(folder_module.Path, "chmod", chmod)
    with pytest.raises(FailedPrecondition, match=r"RTPJ-5628.*cannot be kept from others"):
        Folder(tmp_path, "demo").make()


def test_what_is_asked_and_reported_is_read(folder):
    assert folder.status() == {}
    for wanted in (Wanted({"w": 3}, down=True), Wanted({"w": 0}, num_restarts=2)):
        folder.want(wanted)
        assert folder.wanted() == wanted
    folder.report({"ready": True})
    assert folder.status() == {"ready": True}
    folder.forget()
    assert folder.status() == {}


def test_only_a_ray_that_asks_for_tokens_may_be_reached():
    check_reach(["127.0.0.1", "::1"], has_token=False, insecure=False)
    check_reach(["10.0.0.1"], has_token=True, insecure=False)
    check_reach(["10.0.0.1"], has_token=False, insecure=True)
    with pytest.raises(InvalidArgument, match=r"RTPJ-5627 RAY_EXPOSED.*10\.0\.0\.1"):
        check_reach(["127.0.0.1", "10.0.0.1"], has_token=False, insecure=False)


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    state = ["--state", str(tmp_path)]
    for words in (["status", *state], [*state, "status"]):
        assert main(["cluster", *words]) == 1
        assert "RTPJ-5622" in capsys.readouterr().err
    assert main(["cluster", "up", str(tmp_path / "absent.yaml"), *state]) == 2
    assert "RTPJ-5620" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["cluster", "explode"])
    made = Folder(tmp_path, "demo")
    made.make()
    columns = dict.fromkeys((*COLUMNS, "pages", "error"), "")
    replica = columns | {"name": "w-0", "state": "serving", "last_words": []}
    waiting = columns | {"name": "w-1", "state": "waiting", "last_words": ["no memory"]}
    replicas = [replica | {"error": "RTPJ-5201 no token"}, waiting]
    status = {"name": "demo", "wanted": {"w": 1}, "replicas": replicas, "ready": True}
    status |= {"model": "m", "backend": "local", "down": False}
    with made.held():
        made.want(Wanted({"w": 1}))
        made.report(status)
        assert main(["cluster", "scale", "w:3", *state]) == 2
        assert main(["cluster", "scale", "v=3", *state]) == 2
        assert "RTPJ-5623" in capsys.readouterr().err
        assert main(["cluster", "scale", "w=20000", *state]) == 2
        assert "N at most 10000" in capsys.readouterr().err
        assert main(["cluster", "status", *state]) == 0
        said = capsys.readouterr().out
        assert "cluster demo of m (local): w=1" in said
        assert "w-0 serves and does not say who it is: RTPJ-5201 no token" in said
        assert "w-1 waits to start: no memory" in said
        assert main(["cluster", "status", "--json", *state]) == 0
        assert json.loads(capsys.readouterr().out) == status


def test_a_state_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "c.yaml").write_text("{model: rtp-tiny, groups: [{name: w}]}")
    for more in ([], ["--detach"]):
        words = [str(tmp_path / "c.yaml"), "--state", str(tmp_path / "file"), *more]
        assert main(["cluster", "up", *words]) == 1
        assert "RTPJ-5631 STATE_FOLDER_UNUSABLE" in capsys.readouterr().err


def test_what_is_advised_names_the_folder_if_it_is_another(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Folder(cluster_states(), "demo").flags == "--name demo"
    other = Folder(tmp_path / "my state", "demo")
    assert other.flags == f"--name demo --state '{tmp_path}/my state'"
    other.make()
    with other.held(), pytest.raises(AlreadyExists) as refused, other.held():
        pass
    assert other.flags in str(refused.value)


@pytest.fixture
def scaled(folder, tmp_path):
    """A cluster that is held and serves; `scaled(words)` runs a command in a thread."""
    status = {"name": "demo", "wanted": {"w": 1}, "replicas": [], "ready": True, "down": False}
    status |= {"model": "m", "backend": "local", "num_restarts": 0, "rolling": False}
    folder.want(Wanted({"w": 1}))
    folder.report(status)
    with folder.held(), ThreadPoolExecutor(1) as threads:
        state = ["--state", str(tmp_path)]
        yield status, lambda *words: threads.submit(main, ["cluster", *words, *state])
        folder.want(Wanted({"w": 99}))  # whoever still waits ends


def test_two_restarts_at_once_both_end(scaled, folder):
    status, command = scaled
    code = command("restart")
    until(lambda: folder.wanted().num_restarts == 1)
    folder.want(Wanted({"w": 1}, num_restarts=2))  # somebody else's, before the controller looks
    folder.report(status | {"num_restarts": 2, "rolling": True})
    time.sleep(0.3)
    assert not code.done()
    folder.report(status | {"num_restarts": 2})
    assert code.result(10) == 0


def test_scale_goes_by_what_is_wanted_and_ends_when_somebody_wants_something_else(
    scaled, folder, capsys
):
    _, command = scaled
    folder.want(Wanted({"w": 2, "v": 5}))  # the report is older
    code = command("scale", "w=3")
    until(lambda: folder.wanted().counts == {"w": 3, "v": 5})
    folder.want(Wanted({"w": 4, "v": 5}))
    assert code.result(10) == 1
    assert "RTPJ-5629 CLUSTER_INCOMPLETE" in capsys.readouterr().err


def test_scaling_two_groups_at_once_scales_both(scaled, folder, tmp_path):
    status, command = scaled
    folder.want(Wanted({"w": 1, "v": 1}))
    entered, go_on = threading.Event(), threading.Event()

    def slowly(wanted: Wanted) -> Wanted:
        entered.set()
        assert go_on.wait(10)
        return replace(wanted, counts={**wanted.counts, "v": 4})

    with ThreadPoolExecutor(1) as others:
        other = others.submit(Folder(tmp_path, "demo").change, slowly)
        assert entered.wait(10)
        code = command("scale", "w=3")
        with pytest.raises(AssertionError, match="never happened"):
            until(lambda: folder.wanted().counts["w"] == 3, 0.3)  # while somebody changes it
        go_on.set()
        assert other.result(10).counts == {"w": 1, "v": 4}
    until(lambda: folder.wanted().counts == {"w": 3, "v": 4})
    folder.report(status | {"wanted": {"w": 3, "v": 4}})
    assert code.result(10) == 0


def test_many_who_change_what_is_wanted_wait_for_each_other(folder):
    def restart(_: int) -> None:
        folder.change(lambda wanted: replace(wanted, num_restarts=wanted.num_restarts + 1))

    folder.want(Wanted({"w": 1}))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(restart, range(200)))
    assert folder.wanted().num_restarts == 200


def test_a_controller_goes_on_with_what_it_understood(folder):
    said, steps = [], []

    class Stub:
        """A controller that notes what is wanted, and ends with the fifth step."""

        wanted = Wanted({"w": 1})
        spec = SimpleNamespace(name="demo", model="m", backend="local")
        replicas: ClassVar[list] = []
        ready = True
        gone = rolling = False

        def step(self, now_s):
            steps.append(self.wanted)
            if len(steps) == 1:
                folder._wanted.write_text("{")
            if len(steps) == 2:
                folder.want(Wanted({"v": 9}))
            if len(steps) == 3:
                folder.want(Wanted({"w": 2}, down=True))
            if len(steps) == 4:
                folder.want(Wanted({"w": 3}))  # of a `scale` that had read what was before `down`
            if len(steps) == 3:
                raise OSError("no space left")
            self.gone = len(steps) == 5

    folder.want(Wanted({"w": 1}))
    running_module._Loop(Stub(), folder, said.append).run()
    assert steps == [Wanted({"w": 1})] * 3 + [
        Wanted({"w": 2}, down=True),
        Wanted({"w": 3}, down=True),
    ]
    assert folder.status()["wanted"] == {"w": 3}
    words = "\n".join(said)
    assert "what is wanted cannot be read" in words
    assert "['v'] are wanted" in words
    assert "the system refuses: no space left" in words
    assert said[-1] == "everything has ended"
