"""How much of a prompt goes into a step, and how many logit rows that takes."""

from collections.abc import Iterator
from itertools import count

import pytest

from rtp_jax.scheduler.prefill import chunk_rows, chunk_size
from rtp_jax.scheduler.room import Room
from rtp_jax.scheduler.tracked import Tracked, group_of
from tests.scheduler.simulated import VOCAB, request

NUMBERS: Iterator[int] = count()


def tracked_of(num_prompt: int, *, reported: int = 0, num_output: int = 0, **options) -> Tracked:
    one = request("r", num_prompt, **options)
    group = group_of(one, added_s=0.0, numbers=NUMBERS, ageing_s=0.0, vocab_size=VOCAB, longest=100)
    tracked = group.members[0]
    tracked.sequence.output_ids = [1] * num_output
    tracked.sequence.num_prompt_logprobs = reported
    tracked.prefill_end = num_prompt + num_output
    return tracked


@pytest.mark.parametrize(
    ("start", "tokens", "logit_rows", "longest", "size", "rows"),
    [
        (0, 100, 1, 100, 20, 1),  # all of it
        (0, 12, 1, 100, 12, 0),  # what the step has left
        (0, 100, 1, 7, 7, 0),  # max_prefill_chunk
        (15, 100, 1, 100, 5, 1),
        (0, 100, 0, 100, 19, 0),  # no logit row: all but the token that samples
        (19, 100, 0, 100, 0, 0),
        (0, 0, 1, 100, 0, 0),
    ],
)
def test_plain_chunks(start, tokens, logit_rows, longest, size, rows):
    tracked = tracked_of(20)
    assert chunk_size(tracked, start, Room(tokens, logit_rows), longest) == size
    assert chunk_rows(tracked, start, size) == rows


@pytest.mark.parametrize(
    ("start", "reported", "num_output", "logit_rows", "size", "rows"),
    [
        (0, 0, 0, 64, 20, 20),  # 19 reports and the sample
        (0, 0, 0, 6, 6, 6),
        (16, 0, 0, 6, 4, 4),
        (0, 0, 0, 0, 0, 0),
        (0, 10, 0, 4, 14, 4),  # preempted after 10 reports: they cost nothing again
        (0, 10, 0, 0, 10, 0),
        (0, 19, 3, 1, 23, 1),  # preempted while decoding: only the last token needs a row
        (0, 19, 3, 0, 22, 0),
    ],
)
def test_chunks_with_prompt_logprobs(start, reported, num_output, logit_rows, size, rows):
    tracked = tracked_of(20, reported=reported, num_output=num_output, prompt_logprobs=1)
    assert chunk_size(tracked, start, Room(100, logit_rows), 100) == size
    assert chunk_rows(tracked, start, size) == rows
