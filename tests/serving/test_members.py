"""Which workers a router is told of: addresses, and a file that may change or be wrong."""

import asyncio
import json

import pytest

from rtp_jax.errors import InvalidArgument
from rtp_jax.serving import members
from rtp_jax.serving.members import Member, follow, members_of, read_members, write_members


def test_addresses_and_files(tmp_path):
    assert members_of("a:1, [::1]:2") == [Member("a:1"), Member("[::1]:2")]
    assert members_of(None) == []
    listed = [{"address": "a:1"}, {"address": "b:2", "role": "prefill", "epoch": "e"}]
    expected = [Member("a:1"), Member("b:2", "prefill", "e")]
    (tmp_path / "m.json").write_text(json.dumps(listed))
    (tmp_path / "m.yaml").write_text("- address: a:1\n- {address: b:2, role: prefill, epoch: e}\n")
    assert read_members(tmp_path / "m.json") == read_members(tmp_path / "m.yaml") == expected


def test_what_is_written_is_read(tmp_path):
    listed = [Member("a:1"), Member("b:2", "prefill", "e", "c0ffee")]
    write_members(tmp_path / "m.yaml", listed)
    assert read_members(tmp_path / "m.yaml") == listed
    write_members(tmp_path / "m.yaml", [])
    assert read_members(tmp_path / "m.yaml") == []
    assert [each.name for each in tmp_path.iterdir()] == ["m.yaml"]


@pytest.mark.parametrize("address", ["nobody", "a:99999", "a:b", "http://a:1", ""])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InvalidArgument, match="RTPJ-5604 WORKER_ADDRESS_INVALID"):
        members_of(f"fine:1,{address or ':'}")


@pytest.mark.parametrize(
    "text",
    [
        "a: b",
        "- a:1",
        "- {role: both}",
        "- {address: a:1, colour: red}",
        "[",
        "- {address: a:1, role: x}",
    ],
)
def test_a_file_that_lists_no_workers_is_refused(tmp_path, text):
    (tmp_path / "m").write_text(text)
    with pytest.raises(InvalidArgument, match="RTPJ-5605 MEMBERS_FILE_INVALID"):
        read_members(tmp_path / "m")
    with pytest.raises(InvalidArgument, match="RTPJ-5605"):
        read_members(tmp_path / "absent")


def test_a_file_is_followed_and_a_broken_one_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "LOOK_S", 0.01)
    file, told = tmp_path / "m", []

    async def run():
        file.write_text("- address: a:1\n")
        task = asyncio.ensure_future(follow(file, lambda listed: told.append([*listed])))
        for text in ("- address: a:1\n", "[", "- address: b:2\n- address: a:1\n"):
            file.write_text(text)
            await asyncio.sleep(0.1)
        task.cancel()

    asyncio.run(run())
    assert told[0] == [Member("a:1")]
    assert told[-1] == [Member("b:2"), Member("a:1")]
    assert len(told) == 2
