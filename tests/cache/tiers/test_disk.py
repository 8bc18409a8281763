"""The disk finds its pages again; what happens to its files costs pages and no more (R8)."""

import errno
import os
import shutil
import time
from pathlib import Path

import pytest

from rtp_jax.cache.tiers import disk
from rtp_jax.cache.tiers.disk import DiskTier
from rtp_jax.cache.tiers.record_bytes import HEAD, head_of, record_from, size_of
from rtp_jax.errors import FailedPrecondition
from tests.cache.tiers.pages import read, record, wanted

LAYOUT = b"layout of pages."
SIZE = size_of(record(0, 0))


@pytest.fixture
def tier(tmp_path):
    return filled(tmp_path)


def filled(path: Path, *, pages: int = 4, budget: int = 100 * SIZE) -> DiskTier:
    tier = DiskTier(str(path / "kv"), budget, LAYOUT)
    for at in reversed(range(pages)):
        assert tier.write(record(0, at)) == []
    return tier


def files(path: Path) -> list[Path]:
    return sorted(each for each in (path / "kv" / LAYOUT.hex()).iterdir() if each.is_file())


def file_of(path: Path, at: int) -> Path:
    return next(each for each in files(path) if each.name.startswith(record(0, at).key.hex()))


def test_what_was_written_is_read(tier, tmp_path):
    assert read(tier, wanted(0, 0, 9)) == [record(0, at) for at in range(4)]
    assert tier.usage() == (4, 4 * SIZE)
    assert {each.stat().st_mode & 0o777 for each in files(tmp_path)} == {0o600}
    assert (tmp_path / "kv" / LAYOUT.hex()).stat().st_mode & 0o777 == 0o700


def test_pages_are_found_after_a_restart_by_the_same_layout_only(tier, tmp_path):
    tier.close()
    again = DiskTier(str(tmp_path / "kv"), 100 * SIZE, LAYOUT)
    assert read(again, wanted(0, 0, 9)) == [record(0, at) for at in range(4)]
    other = DiskTier(str(tmp_path / "kv"), 100 * SIZE, b"another layout..")
    assert other.holds(wanted(0, 0, 9)) == 0


def test_a_restart_with_less_room_keeps_the_newest(tier, tmp_path):
    again = DiskTier(str(tmp_path / "kv"), 2 * SIZE, LAYOUT)
    assert again.holds(wanted(0, 0, 9)) == 2  # parents outlive their children
    assert len(files(tmp_path)) == 2


def test_a_full_tier_deletes_the_oldest_leaf(tmp_path):
    tier = filled(tmp_path, budget=4 * SIZE)
    assert tier.write(record(1, 0)) == []
    assert tier.holds(wanted(0, 0, 4)) == 3
    assert len(files(tmp_path)) == 4


def test_what_is_written_back_keeps_its_order_in_the_next_life(tmp_path):
    tier = filled(tmp_path)  # pages 0..3 of chain 0
    newest = [record(1, 0), record(1, 1), record(0, 0), record(2, 0), record(2, 1)]
    assert tier.write_back(newest, time.monotonic() + 10) == 4  # one has its file already
    for room, (of_1, of_2) in zip((5, 4, 3, 2), ((2, 2), (2, 1), (2, 0), (2, 0)), strict=True):
        again = DiskTier(str(tmp_path / "kv"), room * SIZE, LAYOUT)
        assert (again.holds(wanted(1, 0, 2)), again.holds(wanted(2, 0, 2))) == (of_1, of_2)
        assert again.holds(wanted(0, 0, 4)) == (room > 2)


def test_what_is_written_back_takes_no_room_of_what_was_used_later(tmp_path):
    tier = filled(tmp_path, budget=4 * SIZE)
    newest = [record(1, at) for at in range(3)] + [record(0, 0), *(record(2, i) for i in range(9))]
    assert tier.write_back(newest, time.monotonic() + 10) == 3
    for same in (tier, DiskTier(str(tmp_path / "kv"), 4 * SIZE, LAYOUT)):
        assert [same.holds(wanted(chain, 0, 9)) for chain in range(3)] == [1, 3, 0]
    assert len(files(tmp_path)) == 4


def test_what_is_written_back_stops_in_time(tmp_path):
    tier = filled(tmp_path)
    assert tier.write_back([record(1, 0)], time.monotonic()) == 0
    assert tier.holds(wanted(1, 0, 1)) == 0


@pytest.mark.parametrize("keep", [0, 7, HEAD.size - 1, HEAD.size + 1, SIZE - 1])
def test_a_truncated_file_ends_the_run_and_is_put_aside(tier, tmp_path, keep):
    os.truncate(file_of(tmp_path, 2), keep)
    assert read(tier, wanted(0, 0, 4)) == [record(0, 0), record(0, 1)]
    assert tier.holds(wanted(0, 0, 4)) == 2
    assert len(list((tmp_path / "kv" / LAYOUT.hex() / "broken").iterdir())) == 1
    assert tier.write(record(0, 2)) == []  # and it is written anew
    assert len(read(tier, wanted(0, 0, 4))) == 4


@pytest.mark.parametrize("at", [0, 9, 25, 41, 57, 65, HEAD.size, HEAD.size + 2, SIZE - 1])
def test_a_flipped_bit_anywhere_is_noticed(tier, tmp_path, at):
    path = file_of(tmp_path, 1)
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    assert read(tier, wanted(0, 0, 4)) == [record(0, 0)]
    assert tier.holds(wanted(0, 0, 4)) == 1


def test_a_file_under_the_name_of_another_page_is_noticed(tier, tmp_path):
    shutil.copy(file_of(tmp_path, 3), file_of(tmp_path, 1))
    assert read(tier, wanted(0, 0, 4)) == [record(0, 0)]


def test_a_vanished_file_costs_its_page(tier, tmp_path):
    file_of(tmp_path, 1).unlink()
    assert read(tier, wanted(0, 0, 4)) == [record(0, 0)]
    assert tier.holds(wanted(0, 0, 4)) == 1


def test_a_removed_folder_costs_all_pages_and_is_made_again(tier, tmp_path):
    shutil.rmtree(tmp_path / "kv")
    assert read(tier, wanted(0, 0, 4)) == []
    assert tier.write(record(1, 0)) == []
    assert read(tier, wanted(1, 0, 1)) == [record(1, 0)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_cannot_be_written_is_left_alone_for_a_while(tier, tmp_path, monkeypatch, code):
    def fails(*_, **__):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(disk.os, "open", fails)
        assert tier.write(record(1, 0)) == [record(1, 0)]
    assert tier.keeps(record(1, 0).key)  # of no use to write now
    assert tier.write(record(1, 0)) == [record(1, 0)]
    assert len(read(tier, wanted(0, 0, 4))) == 4  # reading goes on
    assert not [each for each in files(tmp_path) if each.name.endswith(".partial")]
    monkeypatch.setattr(disk.time, "monotonic", lambda: 1e12)
    assert tier.write(record(1, 0)) == []


def test_a_real_disk_without_space(tmp_path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    tier = DiskTier(str(tmp_path / "kv"), 100 * SIZE, LAYOUT)
    name = f"{record(0, 0).key.hex()}.{record(0, 0).parent.hex()}.{os.getpid()}.partial"
    folder = tmp_path / "kv" / LAYOUT.hex()
    folder.mkdir()
    (folder / name).symlink_to(full)
    assert tier.write(record(0, 0)) == [record(0, 0)]
    assert tier.usage() == (0, 0)


def test_what_was_never_finished_is_removed_after_a_while(tmp_path):
    folder = tmp_path / "kv" / LAYOUT.hex()
    folder.mkdir(parents=True, mode=0o700)
    for name, age_s in (("old.1.partial", 2 * disk.STALE_S), ("new.2.partial", 0)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age_s,) * 2)
    (folder / "notes.txt").write_text("somebody else's")
    DiskTier(str(tmp_path / "kv"), 100 * SIZE, LAYOUT)
    assert sorted(each.name for each in folder.iterdir()) == ["new.2.partial", "notes.txt"]


def test_only_a_few_broken_files_are_kept(tmp_path):
    tier = filled(tmp_path, pages=disk.MAX_BROKEN + 4)
    for path in files(tmp_path):
        os.truncate(path, 3)
    for at in range(disk.MAX_BROKEN + 4):
        assert read(tier, wanted(0, at, at + 1)) == []
    broken = tmp_path / "kv" / LAYOUT.hex() / "broken"
    assert len(list(broken.iterdir())) == disk.MAX_BROKEN
    assert files(tmp_path) == []


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    (tmp_path / "kv").mkdir()
    (tmp_path / "kv").chmod(0o777)
    with pytest.raises(FailedPrecondition, match="RTPJ-4109 KV_DISK_UNUSABLE"):
        DiskTier(str(tmp_path / "kv"), SIZE, LAYOUT)
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match="RTPJ-4109 KV_DISK_UNUSABLE"):
        DiskTier(str(tmp_path / "file"), SIZE, LAYOUT)


def test_a_record_is_spelled_whole():
    one = record(3, 5)
    content = head_of(one) + one.payload
    assert len(content) == size_of(one)
    assert record_from(content) == one
    assert record_from(content + b"x") is None
    assert record_from(b"") is None
