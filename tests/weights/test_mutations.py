"""Damaged checkpoints: whatever bytes change, a load succeeds or says what is wrong, with an id."""

import json
import random
import shutil

import numpy as np
import pytest

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.fingerprint import fingerprint
from rtp_jax.weights.loader import load
from rtp_jax.weights.reader import Reading
from tests.weights.written import expected, parameters, save, table, tensors

ROUNDS, PER_ROUND = 12, 50
INDEX = "model.safetensors.index.json"
TOKENS = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"0", b"-", b"9" * 20, b"1e9", b"null", b"true"]
TOKENS += [b"F32", b"BF16", b"F64", b"../", b"\\u0000", b"\xff", b"\x00", b"data_offsets", b"shape"]


def damaged(data: bytes, chance: random.Random, limit: int) -> bytes:
    """Change, insert, remove, repeat or cut bytes among the first `limit`."""
    at = chance.randrange(max(1, min(limit, len(data))))
    match chance.randrange(6):
        case 0:
            return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        case 1:
            return data[:at] + chance.choice(TOKENS) + data[at:]
        case 2:
            return data[:at] + data[at + chance.randrange(1, 30) :]
        case 3:
            return data[:at] + data[at : at + 40] + data[at:]
        case 4:
            token = chance.choice(TOKENS)
            return data[:at] + token + data[at + len(token) :]
        case _:
            return data[: chance.choice([at, len(data) - 1])]


def renumbered(data: bytes, chance: random.Random) -> bytes:
    """Change one number or word of a header, which stays well-formed JSON."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    entry = header[chance.choice(sorted(header))]
    number = chance.choice([-1, 0, 1, 4, 1 << 31, 1 << 63, 1 << 64, 1.5, None, "2", [], {}, True])
    match chance.randrange(4):
        case 0:
            entry["shape"] = chance.choice([[number], [number, *entry["shape"]], number])
        case 1:
            entry["data_offsets"][chance.randrange(2)] = number
        case 2:
            entry["dtype"] = chance.choice(["F16", "BF16", "I64", "F4", number])
        case _:
            del entry[chance.choice(sorted(entry))]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def attempt(folder, source) -> bool:
    """Load a damaged checkpoint; True if it loads, False if it is refused as it should be."""
    try:
        loaded = load(folder, table(), parameters(), reading=Reading(block_bytes=4096))
        fingerprint(folder)
    except CheckpointError as refused:
        message = str(refused).encode("utf-8")  # it can be printed and sent
    else:
        shapes = {path: array.shape for path, array in loaded.items()}
        assert shapes == {path: array.shape for path, array in expected(source).items()}
        return True
    assert message.startswith(b"RTPJ-3")
    return False


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_damaged_file_is_refused_or_loaded(tmp_path, seed):
    chance, source, whole = random.Random(seed), tensors(), tmp_path / "whole"
    whole.mkdir()
    (whole / "config.json").write_text("{}")
    save(whole, source, num_files=1 + seed % 3, seed=seed)
    assert attempt(whole, source)
    files = sorted(path.name for path in whole.iterdir() if path.name != "config.json")
    outcomes = []
    for i in range(PER_ROUND):
        folder = tmp_path / str(i)
        shutil.copytree(whole, folder)
        name = chance.choice(files)
        data = (whole / name).read_bytes()
        if name != INDEX and chance.random() < 0.5:
            data = renumbered(data, chance)
        else:
            data = damaged(data, chance, limit=3000)
        (folder / name).write_bytes(data)
        outcomes.append(attempt(folder, source))
    assert False in outcomes


def test_a_damaged_tensor_is_loaded_as_it_is(tmp_path):
    source = tensors()
    (tmp_path / "config.json").write_text("{}")
    save(tmp_path, source)
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    (tmp_path / "model.safetensors").write_bytes(data)
    assert attempt(tmp_path, source)
