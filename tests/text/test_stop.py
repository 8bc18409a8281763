"""Stop strings: the streamed search against the plain one, and what may be held back."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_jax.errors import InvalidArgument
from rtp_jax.text.stop import StopStrings

NUM_CASES = 2000


def plain_search(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The specification: try every end of the text, and every stop string in order."""
    for end in range(1, len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                return text[:end] if include else text[: end - len(stop)], stop
    return text, None


def streamed(text: str, stops: list[str], include: bool, pick: random.Random):
    search, pieces, seen = StopStrings(stops, include), [], ""
    longest = max(map(len, stops))
    while text:
        cut = pick.randrange(1, 7)
        seen, text, new = seen + text[:cut], text[cut:], text[:cut]
        piece, stop = search.push(new)
        pieces.append(piece)
        if stop is not None:
            return "".join(pieces), stop
        held = seen[len("".join(pieces)) :]
        assert len(held) < longest
        assert not held or any(stop.startswith(held) for stop in stops)  # no more than needed
    piece, stop = search.finish()
    return "".join(pieces) + piece, stop


@pytest.mark.parametrize("include", [False, True])
def test_streamed_search_is_the_plain_search(include):
    pick = random.Random(11)
    for _ in range(NUM_CASES):
        alphabet = pick.choice(["ab", "abc", "a\u4e2d\U0001f600\u0301 "])
        text = "".join(pick.choices(alphabet, k=pick.randrange(40)))
        stops = ["".join(pick.choices(alphabet, k=pick.randrange(1, 7))) for _ in range(3)]
        stops = stops[: pick.randrange(1, 4)]
        assert streamed(text, stops, include, pick) == plain_search(text, stops, include)


@settings(deadline=None, max_examples=200, database=None)
@given(st.text("ab\n", max_size=30), st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1))
def test_any_text_and_stops(text, stops):
    assert streamed(text, stops, False, random.Random(0)) == plain_search(text, stops, False)


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["bc", "abc"], "xabc", ("xa", "bc")),  # complete at the same character: first in the list
        (["abc", "bc"], "xabc", ("x", "abc")),
        (["abcd", "bc"], "xabcd", ("xa", "bc")),  # complete first
        (["aab"], "aaab", ("a", "aab")),
        (["</s>"], "a </s", ("a </s", None)),
    ],
)
def test_which_match_wins(stops, text, expected):
    assert streamed(text, stops, False, random.Random(0)) == expected


def test_a_match_while_not_armed_ends_nothing_but_may_begin():
    search = StopStrings(["END"])
    assert search.push("END E", armed=False) == ("END ", None)
    assert search.push("ND") == ("", "END")


def test_long_stops_cost_little():
    search = StopStrings(["a" * 255 + chr(98 + i) for i in range(16)])
    text, stop = search.push("a" * 100_000)
    assert (len(text), stop) == (100_000 - 255, None)
    assert search.finish().text == "a" * 255


@pytest.mark.parametrize("stop", ["", None, 3])
def test_a_bad_stop_string_is_refused_by_index(stop):
    with pytest.raises(
        InvalidArgument, match=r"RTPJ-3320 STOP_STRING_INVALID: stop\[1\]"
    ) as raised:
        StopStrings(["ok", stop])
    assert raised.value.field == "stop"
