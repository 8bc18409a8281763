"""The tokenizer of the built-in model: both of its formats are one tokenizer."""

import shutil
from pathlib import Path

import pytest

import rtp_jax
from rtp_jax.text.chat import choose_template, load_chat_templates, render_chat
from rtp_jax.text.detokenizer import Detokenizer
from rtp_jax.text.tokenizer import load_tokenizer
from tests.text.tiny import random_texts

FOLDER = Path(rtp_jax.__file__).parent / "assets" / "rtp-tiny"
FILES = ("tokenizer.model", "tokenizer_config.json", "generation_config.json")

pytestmark = pytest.mark.skipif(
    not (FOLDER / "tokenizer.json").exists(), reason="rtp-tiny is not in this tree yet"
)


def test_both_formats_agree_and_lose_nothing(tmp_path):
    for name in FILES:
        if (FOLDER / name).exists():
            shutil.copy(FOLDER / name, tmp_path)
    one, other = load_tokenizer(FOLDER), load_tokenizer(tmp_path)
    assert (one.bos_id, one.eos_ids, one.pad_id) == (other.bos_id, other.eos_ids, other.pad_id)
    assert one.special_ids == other.special_ids
    assert one.vocab_size == other.vocab_size
    for text in [*random_texts(41, 300), "a<|end|>b <|user|> c", "\n\t x"]:
        ids = one.encode(text)
        assert other.encode(text) == ids
        for tokenizer in (one, other):
            whole = tokenizer.decode(ids, skip_special_tokens=False)
            assert whole == text.replace("\u2581", " ")
            detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
            pieces = [detokenizer.push([id]) for id in ids]
            assert "".join(pieces) + detokenizer.finish() == whole


def test_chat():
    template = choose_template(load_chat_templates(FOLDER))
    text = render_chat(template, [{"role": "user", "content": "hi"}])
    tokenizer = load_tokenizer(FOLDER)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids[0] in tokenizer.special_ids
    assert "hi" in tokenizer.decode(ids)
