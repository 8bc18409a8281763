"""The streamed text is the decoded text, however the ids come; characters come whole."""

import random

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from rtp_jax.text.detokenizer import Detokenizer
from rtp_jax.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.tiny import random_texts

NUM_SEQUENCES = 600


def stream(tokenizer: Tokenizer, ids: list[int], prompt: list[int], pick: random.Random, **options):
    """Push ids in random portions."""
    detokenizer = Detokenizer(tokenizer, prompt, **options)
    pieces = []
    while ids:
        cut = pick.randrange(1, 6)
        pieces.append(detokenizer.push(ids[:cut]))
        ids = ids[cut:]
    return [*pieces, detokenizer.finish()]


@pytest.mark.parametrize("skip", [True, False])
def test_random_ids_stream_as_they_decode(tokenizer, skip):
    pick = random.Random(1)
    for _ in range(NUM_SEQUENCES // 2):
        ids = pick.choices(range(tokenizer.vocab_size), k=pick.randrange(40))
        text = "".join(stream(tokenizer, ids, [], pick, skip_special_tokens=skip))
        whole = tokenizer.decode(ids, skip_special_tokens=skip)
        if tokenizer.joins_bytes:
            assert text == whole
        else:  # a window may see U+FFFD, or the space of a first token, otherwise than the whole
            assert text.strip() == whole.strip()


@pytest.mark.capability("tokenizers")
def test_real_text_streams_whole_characters(tokenizer):
    pick = random.Random(2)
    for text in random_texts(3, NUM_SEQUENCES):
        ids = tokenizer.encode(text)
        pieces = stream(tokenizer, ids, [], pick)
        assert "".join(pieces) == tokenizer.decode(ids)
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_prompt_is_context_not_text(tokenizer):
    pick = random.Random(4)
    for text in random_texts(5, NUM_SEQUENCES):
        ids = tokenizer.encode(text, add_special_tokens=False)
        cut = pick.randrange(len(ids) + 1)
        prompt, rest = ids[:cut], ids[cut:]
        whole, before = tokenizer.decode(ids), tokenizer.decode(prompt).rstrip("\ufffd")
        if not tokenizer.joins_bytes and not before.strip():
            continue  # nothing of the prompt is visible: whether a space leads is undefined
        assert before + "".join(stream(tokenizer, rest, prompt, pick)) == whole


def test_a_cut_character_appears_once_at_the_end(tokenizers):
    for tokenizer in (tokenizers["byte_level"], tokenizers["sentencepiece"]):
        ids = tokenizer.encode("a\U0001f9ff", add_special_tokens=False)
        detokenizer = Detokenizer(tokenizer)
        assert detokenizer.push(ids[:-1]) == "a"
        assert detokenizer.finish() == "\ufffd"


def test_invalid_bytes_keep_what_was_whole(tokenizers):
    tokenizer = tokenizers["byte_fallback"]
    spelled = [tokenizer._backend.id_of(f"<0x{byte:02X}>") for byte in b"\xe4\xb8\xad\xff\xe4"]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push([id]) for id in spelled] == ["", "", "\u4e2d", "\ufffd", ""]
    assert detokenizer.finish() == "\ufffd"
    assert tokenizer.decode(spelled) == "\u4e2d\ufffd\ufffd"


def test_a_leading_space_is_dropped_only_at_the_start(tokenizers):
    for name in ("byte_fallback", "sentencepiece"):
        tokenizer = tokenizers[name]
        ids = tokenizer.encode("the the", add_special_tokens=False)
        assert Detokenizer(tokenizer).push(ids) == "the the"
        assert Detokenizer(tokenizer, ids).push(ids) == " the the"
        assert Detokenizer(tokenizer, [tokenizer.bos_id]).push(ids) == "the the"


def test_unknown_ids_have_no_text(tokenizer):
    for skip in (True, False):
        detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
        assert detokenizer.push([tokenizer.vocab_size, 10**9, -1]) == ""
        assert detokenizer.finish() == ""


def test_what_never_becomes_a_character_does_not_pile_up(tokenizers):
    tokenizer = tokenizers["metaspace"]
    detokenizer = Detokenizer(tokenizer)
    space = tokenizer.encode(" ", add_special_tokens=False)[:1]
    for _ in range(500):
        detokenizer.push(space)
    assert len(detokenizer._stream._window) < 40


@pytest.mark.parametrize(("spaces", "expected"), [(True, "a <x> <x> b b"), (False, "a<x><x>b b")])
def test_spaces_beside_special_tokens(tmp_path, spaces, expected):
    vocabulary = {"a": 0, "b": 1, "<x>": 2, "<unk>": 3}
    library = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()  # and no decoder: it joins with spaces
    library.add_special_tokens(["<x>", "<unk>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer, ids = load_tokenizer(tmp_path), [0, 2, 2, 1, 1]
    options = {"skip_special_tokens": False, "spaces_between_special_tokens": spaces}
    assert tokenizer.decode(ids, **options) == expected
    assert "".join(stream(tokenizer, ids, [], random.Random(0), **options)) == expected
    assert [*map(tokenizer.token_text, ids)] == [" a", " <x>", " <x>", " b", " b"]
