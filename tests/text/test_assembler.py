"""Ids and text of a completion stay aligned, however the ids come."""

import random

import pytest

from rtp_jax.errors import InvalidArgument
from rtp_jax.text.assembler import Piece, TextAssembler
from tests.text.test_stop import plain_search
from tests.text.tiny import random_texts

NUM_CASES = 2000


def assemble(assembler: TextAssembler, ids: list[int], pick: random.Random):
    """Push ids in random portions; return the text, the ids that stay and the stop string."""
    text, kept, position = "", [], 0
    while position < len(ids):
        pushed = ids[position : position + pick.randrange(1, 5)]
        piece = assembler.push(pushed)
        position += len(pushed)
        text, kept = text + piece.text, kept + pushed[: piece.num_tokens]
        if piece.stopped is not None:
            return text, kept, piece.stopped
        assert piece.num_tokens == len(pushed)
    piece = assembler.finish()
    return text + piece.text, kept, piece.stopped


def whole_texts(tokenizer, ids):
    """Give the text that is certain after each id: what a whole decode will never change."""
    return [tokenizer.decode(ids[:n]).rstrip("\ufffd") for n in range(len(ids) + 1)]


def test_text_and_ids_follow_the_stop_rule(tokenizers):
    pick = random.Random(21)
    kinds = [tokenizers[name] for name in ("byte_level", "byte_fallback", "sentencepiece")]
    stopped = 0
    for number, source in enumerate(random_texts(22, NUM_CASES)):
        tokenizer = kinds[number % len(kinds)]
        ids = tokenizer.encode(source, add_special_tokens=False)
        whole = tokenizer.decode(ids)
        assert "\ufffd" not in whole
        stops = [_some_of(whole, pick) for _ in range(pick.randrange(1, 4))]
        include = pick.random() < 0.3
        assembler = TextAssembler(tokenizer, stops=stops, include_stop_str_in_output=include)
        text, kept, stop = assemble(assembler, ids, pick)
        assert (text, stop) == plain_search(whole, stops, include)
        assert "\ufffd" not in text
        assert kept == ids[: len(kept)]
        if stop is None:
            assert kept == ids
            continue
        stopped += 1
        certain = whole_texts(tokenizer, kept)
        end = len(text) if include else len(text) + len(stop)
        assert len(certain[-2]) < end <= len(certain[-1])  # the last id completes the match
    assert NUM_CASES // 4 < stopped < NUM_CASES


def _some_of(text: str, pick: random.Random) -> str:
    """Pick a stop string: mostly a piece of the text, sometimes with another end."""
    start = pick.randrange(len(text) + 1)
    stop = text[start : start + pick.randrange(1, 9)]
    return stop + "#" if not stop or pick.random() < 0.5 else stop


def test_stop_strings_wait_for_min_tokens(tokenizers):
    tokenizer = tokenizers["byte_level"]
    ids = [*map(tokenizer.encode, "abab")]
    assert [len(id) for id in ids] == [1] * 4
    ids = [id for (id,) in ids]
    for min_tokens, expected in [(0, 2), (1, 2), (2, 4), (3, 4), (4, 4)]:
        assembler = TextAssembler(tokenizer, stops=["b"], min_tokens=min_tokens)
        piece = assembler.push(ids)
        assert piece.num_tokens == expected
        assert piece.stopped == ("b" if min_tokens < 4 else None)
        text = piece.text + assembler.finish().text
        assert text == {0: "a", 1: "a", 2: "aba", 3: "aba", 4: "abab"}[min_tokens]


def test_a_match_may_begin_before_min_tokens(tokenizers):
    tokenizer = tokenizers["byte_level"]
    ids = [tokenizer.encode(char)[0] for char in "xabc"]
    assembler = TextAssembler(tokenizer, stops=["abc"], min_tokens=3)
    assert assembler.push(ids) == Piece("x", 4, "abc")


def test_after_a_stop_nothing_is_kept(tokenizers):
    tokenizer = tokenizers["byte_level"]
    (a,), (b,) = tokenizer.encode("a"), tokenizer.encode("b")
    assembler = TextAssembler(tokenizer, stops=["b"])
    assert assembler.push([a, b, a]) == Piece("a", 2, "b")
    assert assembler.push([a]) == Piece("", 0, "b")
    assert assembler.finish() == Piece("", 0, "b")


def test_without_detokenizing_there_is_no_text(tokenizers):
    assembler = TextAssembler(tokenizers["byte_level"], detokenize=False)
    assert assembler.push([1, 2, 3]) == Piece("", 3, None)
    assert assembler.finish() == Piece("", 0, None)
    with pytest.raises(InvalidArgument, match="RTPJ-3321 STOP_STRINGS_NEED_TEXT"):
        TextAssembler(tokenizers["byte_level"], detokenize=False, stops=["x"])
