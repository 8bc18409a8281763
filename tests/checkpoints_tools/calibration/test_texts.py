"""Texts for calibration: what is read of a file, and what is refused."""

import json
import os
from pathlib import Path

import pytest

from checkpoints_tools.calibration.texts import Wanted, read_texts
from checkpoints_tools.text_quality import MAX_TEXT_BYTES
from rtp_jax.errors import CheckpointError, InvalidArgument
from rtp_jax.text.tokenizer import load_tokenizer
from tests.tiny_model import TEXT, write_tiny_model

LINES = [line for line in TEXT.splitlines() if line]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def read(model: Path, path: Path, tokens: int = 10_000, length: int = 32):
    return read_texts(model, Wanted(path, tokens, length), vocab_size=512)


def test_a_text_is_cut_into_sequences(model, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    texts = read(model, tmp_path / "a.txt")
    ids = load_tokenizer(model).encode(TEXT)
    assert [token for one in texts.sequences for token in one] == ids
    assert {len(one) for one in texts.sequences[:-1]} == {32}
    assert texts.num_tokens == len(ids)


def test_lines_are_documents_of_their_own(model, tmp_path):
    tokenizer = load_tokenizer(model)
    conversation = [{"role": "user", "content": LINES[1]}, {"role": "assistant", "content": "Yes"}]
    lines = [{"text": LINES[0]}, {"messages": conversation, "more": 1}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    texts = read(model, tmp_path / "a.jsonl", length=500)
    (tmp_path / "a.JSONL").write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert read(model, tmp_path / "a.JSONL", length=500) == texts
    chat = f"<|im_start|>user\n{LINES[1]}<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
    assert texts.sequences == [tokenizer.encode(LINES[0]), tokenizer.encode(chat)]
    assert 1 in texts.sequences[1]  # <|im_end|> of the template is a token
    spelled = json.dumps({"text": "<|im_end|>" * 20})
    (tmp_path / "b.jsonl").write_text(spelled)
    assert 1 not in read(model, tmp_path / "b.jsonl").sequences[0]  # that of a text is not


def test_fewer_tokens_are_taken_from_all_over_the_file(model, tmp_path):
    lines = [f"{number} {line}" for number in range(20) for line in LINES]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    whole, some = read(model, tmp_path / "a.txt"), read(model, tmp_path / "a.txt", tokens=400)
    assert some.num_tokens == 400
    places = [whole.sequences.index(one) for one in some.sequences[:-1]]
    assert places == sorted(places)
    assert places[-1] > 0.8 * len(whole.sequences)
    assert some.sha256 == whole.sha256


WRONG = {
    "short.txt": (b"few words", "tokens, at least 64 are needed"),
    "empty.jsonl": (b"\n\n", "has 0 tokens"),
    "list.jsonl": (b"[1]\n", "line 1: RTPJ-3013"),
    "torn.jsonl": (b'{"text": "a"}\n{"text', "line 2: RTPJ-3013"),
    "other.jsonl": (b'{"prompt": "a"}\n', "line 1 has neither"),
    "number.jsonl": (b'{"text": 7}\n', "line 1 has neither"),
    "role.jsonl": (b'{"messages": [{"content": "a"}]}\n', "line 1: RTPJ-3"),
    "surrogate.jsonl": (b'{"text": "\\ud800"}\n', "line 1: RTPJ-"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_text_is_refused(name, model, tmp_path):
    content, reason = WRONG[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgument, match="RTPJ-3633 CALIBRATION_FILE_INVALID") as refused:
        read(model, tmp_path / name)
    assert reason in str(refused.value)


def test_files_that_cannot_be_read_are_refused(model, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff" * 1000)
    with pytest.raises(CheckpointError, match="RTPJ-3619 TEXT_NOT_UTF8"):
        read(model, tmp_path / "a.txt")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "large.txt").write_bytes(b"")
    os.truncate(tmp_path / "large.txt", MAX_TEXT_BYTES + 1)
    wrong = {"none": "does not exist", "folder": "no ordinary file", "large": "bytes, at most"}
    for name, reason in wrong.items():
        with pytest.raises(CheckpointError, match=f"RTPJ-3635 TEXT_UNREADABLE: .*{reason}"):
            read(model, tmp_path / f"{name}.txt")


def test_a_tokenizer_of_another_model_is_noticed(model, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(InvalidArgument, match=r"RTPJ-3633 .* the model has 300"):
        read_texts(model, Wanted(tmp_path / "a.txt", 1000, 32), vocab_size=300)
