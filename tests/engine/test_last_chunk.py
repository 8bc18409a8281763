"""A short last step is chosen where it is predicted to bring the pages sooner, and only there."""

import pytest

from rtp_jax.engine.last_chunk import LastChunk

LONGEST, PAGE, PAGE_BYTES = 512, 16, 131_072


def chosen(*, bytes_per_s: float | None, step_s: float, token_s: float, longest=LONGEST) -> int:
    """Choose where links and steps are as fast as said."""
    last = LastChunk(
        longest=longest,
        page_size=PAGE,
        page_bytes=PAGE_BYTES,
        prefill_s=lambda tokens: step_s + token_s * tokens,
    )
    for pages in (2, 30, 32) if bytes_per_s is not None else ():
        last.travelled(pages * PAGE_BYTES, pages * PAGE_BYTES / bytes_per_s)
    return last.tokens()


@pytest.mark.parametrize(
    ("bytes_per_s", "expected"),
    [
        (None, 0),  # nothing was measured
        (125e6, 128),  # its pages take 34 ms of 128, and what a step costs is far less
        (20e6, 256),  # pages travel longer than they are computed: as much as possible meanwhile
        (10e9, 0),  # nothing to gain
    ],
)
def test_the_link_decides(bytes_per_s, expected):
    assert chosen(bytes_per_s=bytes_per_s, step_s=0.004, token_s=0.25e-3) == expected


def test_one_step_more_must_be_worth_it():
    assert chosen(bytes_per_s=125e6, step_s=0.05, token_s=0.25e-3) == 0
    assert chosen(bytes_per_s=500e6, step_s=0.0, token_s=0.25e-3) == 64


def test_it_is_whole_pages():
    assert chosen(bytes_per_s=500e6, step_s=0.0, token_s=0.25e-3, longest=200) == 16
    assert chosen(bytes_per_s=500e6, step_s=0.0, token_s=0.25e-3, longest=24) == 0


def test_steps_must_have_been_measured():
    last = LastChunk(
        longest=LONGEST, page_size=PAGE, page_bytes=PAGE_BYTES, prefill_s=lambda tokens: None
    )
    last.travelled(PAGE_BYTES, 0.1)
    assert last.tokens() == 0
