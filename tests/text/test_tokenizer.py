"""Tokenizers: both kinds of files, both generations of config files, and files that are bad."""

import functools
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from rtp_jax.errors import CheckpointError, InvalidArgument
from rtp_jax.text import tokenizer_files
from rtp_jax.text.tokenizer import load_tokenizer
from tests.text.tiny import KINDS, random_texts, sentencepiece_bpe, write_json


def test_text_comes_back(tokenizers):
    for name in ("byte_level", "byte_fallback", "sentencepiece"):
        tokenizer = tokenizers[name]
        for text in random_texts(7, 300):
            ids = tokenizer.encode(text, add_special_tokens=False, allow_special=False)
            if name != "byte_level":  # sentencepiece spells the space so
                text = text.replace("\u2581", " ")
            assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_byte_level_decodes_as_the_library(tokenizers):
    tokenizer = tokenizers["byte_level"]
    for text in random_texts(8, 300):
        ids = tokenizer.encode(text)[::-1]  # backwards: invalid UTF-8, too
        assert tokenizer.decode(ids, skip_special_tokens=False) == tokenizer._backend.decode(ids)


@pytest.mark.parametrize(
    ("name", "bos", "eos", "pad", "special"),
    [
        ("byte_level", None, "<|im_end|>", "<|endoftext|>", 3),
        ("byte_fallback", "<s>", "</s>", None, 3),
        ("metaspace", None, "</s>", None, 2),
        ("sentencepiece", "<s>", "</s>", None, 5),
    ],
)
def test_special_tokens(tokenizers, name, bos, eos, pad, special):
    tokenizer = tokenizers[name]
    spelled = [
        None if id is None else tokenizer.token_text(id).strip()
        for id in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    ]
    assert spelled == [bos, eos, pad]
    assert tokenizer.eos_ids == (tokenizer.eos_id,)
    assert len(tokenizer.special_ids) == special
    assert max(tokenizer.special_ids) < tokenizer.vocab_size


def test_special_strings_in_text(tokenizers):
    tokenizer = tokenizers["byte_level"]
    text = "a<|im_end|>b<think>"
    ids = tokenizer.encode(text)
    assert tokenizer.eos_id in ids
    assert tokenizer.decode(ids) == "ab<think>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    plain = tokenizer.encode(text, allow_special=False)
    assert tokenizer.eos_id not in plain
    assert tokenizer.decode(plain) == text


def test_added_token_of_the_older_generation(tokenizers):
    tokenizer = tokenizers["byte_fallback"]
    ids = tokenizer.encode("hi <|user|>")  # `normalized`: found with the space before it, as in HF
    assert ids[0] == tokenizer.bos_id
    assert ids[-1] == tokenizer.vocab_size - 1
    assert tokenizer.decode(ids) == "hi <|user|>"  # added, not special


def test_legacy_sentencepiece_puts_a_space_after_special_tokens(tmp_path, tokenizers):
    new, text = tokenizers["sentencepiece"], "the<|im_end|>the"
    (tmp_path / "old").mkdir()
    old = load_tokenizer(sentencepiece_bpe(tmp_path / "old", legacy=True))
    assert new.decode(new.encode(text), skip_special_tokens=False) == f"<s> {text}"
    assert old.decode(old.encode(text), skip_special_tokens=False) == "<s> the<|im_end|> the"


def test_flags_for_bos_and_eos(tmp_path):
    for name in ("byte_fallback", "sentencepiece"):
        folder = KINDS[name](tmp_path)
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text())
        for bos in (True, False):
            for eos in (True, False):
                write_json(path, config | {"add_bos_token": bos, "add_eos_token": eos})
                tokenizer = load_tokenizer(folder)
                ids = tokenizer.encode("x")
                assert (ids[0] == tokenizer.bos_id, ids[-1] == tokenizer.eos_id) == (bos, eos)
                plain = tokenizer.encode("x", add_special_tokens=False)
                assert plain == ids[bos : len(ids) - eos]
        for file in folder.iterdir():
            file.unlink()


def test_tokens_that_swallow_spaces(tmp_path):
    folder = sentencepiece_bpe(tmp_path)
    path = folder / "tokenizer_config.json"
    token = {"content": "<mask>", "lstrip": True, "rstrip": True, "special": True}
    write_json(path, json.loads(path.read_text()) | {"mask_token": token})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size == 421
    ids = tokenizer.encode("a <mask> b")
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s> a<mask>b"


def test_eos_ids_of_the_generation_config(tmp_path):
    folder = KINDS["byte_level"](tmp_path)
    write_json(folder / "generation_config.json", {"eos_token_id": [402, 401]})
    assert load_tokenizer(folder).eos_ids == (401, 402)


def test_truncation_in_the_file_is_ignored(tmp_path):
    folder = KINDS["byte_level"](tmp_path)
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    cut = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    write_json(path, value | {"truncation": cut})
    assert len(load_tokenizer(folder).encode("x1" * 50)) > 50


def test_tokens_spelled_for_logprobs(tokenizers):
    byte_level, text = tokenizers["byte_level"], " the \U0001f9ff"
    ids = byte_level.encode(text)
    assert b"".join(map(byte_level.token_bytes, ids)) == text.encode()
    assert byte_level.token_text(ids[-1]) == "bytes:\\xbf"
    assert byte_level.token_text(ids[0]).startswith(" t")
    for tokenizer in tokenizers.values():
        ids = tokenizer.encode("the the", add_special_tokens=False)
        assert "".join(map(tokenizer.token_text, ids)).strip() == "the the"
        assert tokenizer.token_text(tokenizer.vocab_size) == ""


def test_many_threads(tokenizers):
    texts = random_texts(9, 200)
    for tokenizer in tokenizers.values():
        expected = [tokenizer.encode(text, allow_special=False) for text in texts]
        with ThreadPoolExecutor(4) as pool:
            ids = [*pool.map(functools.partial(tokenizer.encode, allow_special=False), texts)]
            assert ids == expected
            assert [*pool.map(tokenizer.decode, ids)] == [*map(tokenizer.decode, ids)]


def test_text_that_is_refused(tokenizer):
    with pytest.raises(InvalidArgument, match="RTPJ-3310 TEXT_NOT_A_STRING: prompt is a bytes"):
        tokenizer.encode(b"x")
    with pytest.raises(InvalidArgument, match=r"RTPJ-3311 .* 11 characters, 10 are .* by 1\."):
        tokenizer.encode("x" * 11, max_chars=10)
    with pytest.raises(InvalidArgument, match=r"RTPJ-3312 .*U\+D83D\) at character 1"):
        tokenizer.encode("x\ud83d")


# ---- files ----


def load_with(folder, name: str, content: bytes):
    (folder / name).write_bytes(content)
    return load_tokenizer(folder)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"RTPJ-3301 TOKENIZER_MISSING: .* has neither"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="RTPJ-3301"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"\xff\xfe", b"null", b'{"model": {}}', b"[" * 100_000],
)
def test_a_corrupt_tokenizer_json(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"RTPJ-3304 .*tokenizer\.json"):
        load_with(tmp_path, "tokenizer.json", content)


@pytest.mark.parametrize("content", [b"", b"x", b"\x00" * 100, b"IQ== 0\nIg== 1\n" * 20])
def test_a_corrupt_tokenizer_model(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"RTPJ-3304 .*tokenizer\.model"):
        load_with(tmp_path, "tokenizer.model", content)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.999])
def test_a_truncated_file(tmp_path, folders, name, part):
    kind = "byte_level" if name.endswith("json") else "sentencepiece"
    content = (folders[kind] / name).read_bytes()
    with pytest.raises(CheckpointError, match=r"RTPJ-3304 TOKENIZER_FILE_CORRUPT: .*truncated"):
        load_with(tmp_path, name, content[: int(len(content) * part)])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"])
@pytest.mark.parametrize("start", [b"\x80\x04\x95", b"PK\x03\x04", b"\x7fELF", b"#!/bin/sh\n"])
def test_formats_that_could_run_are_refused(tmp_path, name, start):
    with pytest.raises(CheckpointError, match=r"RTPJ-3305 TOKENIZER_FORMAT_REFUSED: .*tokenizer"):
        load_with(tmp_path, name, start + b"x" * 100)


def test_a_large_file_is_not_read(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.touch()
    os.truncate(path, tokenizer_files.MAX_TOKENIZER_BYTES + 1)  # sparse
    with pytest.raises(CheckpointError, match="RTPJ-3303 TOKENIZER_FILE_TOO_LARGE"):
        load_tokenizer(tmp_path)


def test_a_pipe_or_a_folder_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="RTPJ-3302 TOKENIZER_FILE_UNREADABLE"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        b"[]",
        b"{",
        b'{"added_tokens_decoder": []}',
        b'{"added_tokens_decoder": {"x": {"content": "y"}}}',
        b'{"added_tokens_decoder": {"-1": {"content": "y"}}}',
        b'{"added_tokens_decoder": {"99999999999": {"content": "y"}}}',
        b'{"added_tokens_decoder": {"1": {}}}',
        b'{"eos_token": 3}',
        b'{"eos_token": {"content": 3}}',
        b'{"add_bos_token": "yes"}',
        b'{"additional_special_tokens": [3]}',
    ],
)
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_a_corrupt_config(tmp_path, kind, config):
    folder = KINDS[kind](tmp_path)
    with pytest.raises(CheckpointError, match=r"RTPJ-3304 .*tokenizer_config\.json"):
        load_with(folder, "tokenizer_config.json", config)


def test_ids_that_contradict_are_refused(tmp_path):
    folder = KINDS["byte_level"](tmp_path)
    wrong = {"added_tokens_decoder": {"7": {"content": "<|im_end|>", "special": True}}}
    with pytest.raises(
        CheckpointError, match=r"RTPJ-3306 .*'<\|im_end\|>' the id 7, and it is 401"
    ):
        load_with(folder, "tokenizer_config.json", json.dumps(wrong).encode())


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_works_or_is_refused(tmp_path, kind):
    pick = random.Random(51)
    folder = KINDS[kind](tmp_path)
    name = "tokenizer.model" if kind == "sentencepiece" else "tokenizer.json"
    content = (folder / name).read_bytes()
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(pick.choice([1, 3, 30])):
            damaged[pick.randrange(len(damaged))] = pick.randrange(256)
        try:
            tokenizer = load_with(folder, name, bytes(damaged))
        except CheckpointError:
            continue
        tokenizer.decode(tokenizer.encode("the \U0001f9ff"))
