"""A file of members that follows names: found, changed, lost for a while, called wrongly."""

import pytest

from rtp_jax.errors import InvalidArgument
from rtp_jax.serving.main import main
from rtp_jax.serving.members import Member, read_members, write_members
from rtp_jax.serving.members_command import Following, source_of


def test_the_file_follows_the_names(tmp_path):
    leads_to = {"pre": ["10.0.0.1"], "dec": ["10.0.0.2", "fd00::3"]}

    def lookup(name):
        if name not in leads_to:
            raise OSError("no such name")
        return leads_to[name]

    file = tmp_path / "m.yaml"
    following = Following(file, [("prefill", "pre", 1), ("decode", "dec", 2)], lookup)
    following.look()
    first = Member("10.0.0.1:1", "prefill")
    rest = [Member("10.0.0.2:2", "decode"), Member("[fd00::3]:2", "decode")]
    assert read_members(file) == [first, *rest]
    written = file.stat().st_ino
    following.look()
    assert file.stat().st_ino == written  # nothing new, nothing written
    del leads_to["dec"]
    leads_to["pre"] = ["10.0.0.9"]
    following.look()
    assert read_members(file) == [Member("10.0.0.9:1", "prefill"), *rest]
    leads_to["dec"] = []
    following.look()
    assert read_members(file) == [Member("10.0.0.9:1", "prefill")]


def test_a_name_that_never_led_anywhere_has_no_members(tmp_path):
    def lookup(name):
        raise OSError("no such name")

    Following(tmp_path / "m", [("both", "x", 1)], lookup).look()
    assert read_members(tmp_path / "m") == []


def test_a_restart_while_names_lead_nowhere_keeps_the_file(tmp_path, caplog):
    leads_to = {}

    def lookup(name):
        if name not in leads_to:
            raise OSError("no such name")
        return leads_to[name]

    file = tmp_path / "m"
    before = [Member("10.0.0.1:1", "prefill"), Member("10.0.0.2:2", "decode")]
    write_members(file, before)
    following = Following(file, [("prefill", "pre", 1), ("decode", "dec", 2)], lookup)
    for _ in range(3):
        following.look()
    assert read_members(file) == before
    assert caplog.text.count("pre leads nowhere (no such name); 1 members stay") == 1
    leads_to["pre"] = ["10.0.0.9"]
    following.look()
    assert read_members(file) == [Member("10.0.0.9:1", "prefill"), before[1]]
    del leads_to["pre"]
    following.look()
    assert caplog.text.count("pre leads nowhere") == 2  # it had led somewhere between
    leads_to |= {"pre": [], "dec": []}
    following.look()
    assert read_members(file) == []


def test_a_file_that_cannot_be_written_is_named(tmp_path, capsys):
    assert main(["members", str(tmp_path / "absent" / "m"), "both=127.0.0.1:1"]) == 1
    assert "RTPJ-5632 MEMBERS_FILE_NOT_WRITTEN" in capsys.readouterr().err


def test_the_command_writes_once(tmp_path):
    assert main(["members", str(tmp_path / "m"), "both=127.0.0.1:50061", "--once"]) == 0
    assert read_members(tmp_path / "m") == [Member("127.0.0.1:50061", "both")]


@pytest.mark.parametrize("words", ["x", "chief=a:1", "both=a", "both=a:99999", "both=http://a:1"])
def test_what_names_no_workers_is_refused(words):
    with pytest.raises(InvalidArgument, match="RTPJ-5630 MEMBER_SOURCE_INVALID"):
        source_of(words)
