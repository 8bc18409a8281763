"""Tokenizers and chat templates give what transformers gives; `golden_recipe.py` asked it."""

import base64
import json
import re
from pathlib import Path

import pytest

from rtp_jax.text.chat import ChatTemplate, render_chat
from rtp_jax.text.tokenizer import Tokenizer, load_tokenizer

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden_transformers.json").read_text(encoding="utf-8"))
CASES = json.loads((HERE / "chat_cases.json").read_text(encoding="utf-8"))
# Where text begins with a space, transformers 5 drops one that sentencepiece itself keeps.
SPACED = re.compile("(^|>)[ \u2581]")


@pytest.fixture(params=GOLDEN["kinds"])
def kind(request, tmp_path) -> tuple[Tokenizer, dict]:
    golden = GOLDEN["kinds"][request.param]
    for name, content in golden["files"].items():
        (tmp_path / name).write_bytes(base64.b64decode(content))
    return load_tokenizer(tmp_path), golden


def test_encoding(kind):
    tokenizer, golden = kind
    for row in golden["rows"]:
        text = row["text"]
        if SPACED.search(text) and "tokenizer.model" in golden["files"]:
            continue
        assert tokenizer.encode(text) == row["ids"], text
        assert tokenizer.encode(text, add_special_tokens=False) == row["plain"], text
        assert tokenizer.encode(text, allow_special=False) == row["unsplit"], text


def test_decoding(kind):
    tokenizer, golden = kind
    for row in golden["rows"]:
        assert tokenizer.decode(row["ids"], skip_special_tokens=False) == row["decoded"]
        assert tokenizer.decode(row["ids"]) == row["skipped"]


def test_vocabulary(kind):
    tokenizer, golden = kind
    assert tokenizer.vocab_size == golden["size"]
    assert {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id} == golden["special"]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_chat(number):
    case = CASES[number]
    text = render_chat(ChatTemplate("x", case["template"]), case["messages"], **case["options"])
    assert text == GOLDEN["chats"][number]
