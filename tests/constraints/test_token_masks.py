"""Token masks: each ban, their order, and the token that always survives."""

import numpy as np
import pytest

from rtp_jax.constraints.token_masks import (
    full_mask,
    mask_of,
    masks_of,
    needs_host_history,
    without,
)
from rtp_jax.request import Request
from rtp_jax.sampling_params import SamplingParams

VOCAB = 70  # not a multiple of 32
EVERYTHING = set(range(VOCAB))


def request(*, bad=(), stops=(), eos=(), **options) -> Request:
    return Request(
        id="r",
        prompt_token_ids=(1,),
        params=SamplingParams(**options),
        bad_word_ids=bad,
        stop_token_ids=frozenset(stops),
        eos_token_ids=frozenset(eos),
    )


def allowed(mask: np.ndarray) -> set[int]:
    assert mask.dtype == np.uint32
    assert mask.shape == (3,)
    return {i for i in range(96) if mask[i // 32] >> np.uint32(i % 32) & 1}


def after(one: Request, *output_ids: int) -> set[int] | None:
    masks = masks_of(one, VOCAB)
    assert masks is not None
    mask = masks.next_mask(len(output_ids), output_ids)
    return None if mask is None else allowed(mask)


def test_bits():
    assert allowed(full_mask(VOCAB)) == EVERYTHING
    assert allowed(mask_of([0, 31, 32, 69], VOCAB)) == {0, 31, 32, 69}
    assert allowed(without(full_mask(VOCAB), [0, 31, 64])) == EVERYTHING - {0, 31, 64}


def test_nothing_is_masked_for_most_requests():
    assert masks_of(request(stops=[3], eos=[4]), VOCAB) is None


def test_allowed_token_ids():
    assert after(request(allowed_token_ids=[5, 33, 69])) == {5, 33, 69}


def test_bad_words_of_one_token_are_always_banned():
    assert after(request(bad=((5,), (64,)))) == EVERYTHING - {5, 64}
    assert after(request(bad=((5,), (64,))), 5, 64) == EVERYTHING - {5, 64}


def test_the_last_token_of_a_bad_word_is_banned_after_the_others():
    one = request(bad=((5, 6, 7), (5, 8), (6, 9)))
    assert after(one) is None
    assert after(one, 5) == EVERYTHING - {8}
    assert after(one, 5, 6) == EVERYTHING - {7, 9}
    assert after(one, 4, 6) == EVERYTHING - {9}
    assert after(one, 6, 5, 5) == EVERYTHING - {8}


def test_the_prompt_is_no_part_of_a_bad_word():
    assert after(request(bad=((1, 6),))) is None


def test_ends_are_banned_until_min_tokens():
    one = request(min_tokens=2, stops=[3], eos=[4, 5])
    assert after(one) == after(one, 9) == EVERYTHING - {3, 4, 5}
    assert after(one, 9, 9) is None


def test_min_tokens_does_not_look_at_the_tokens():
    masks = masks_of(request(min_tokens=2, stops=[3]), VOCAB)
    assert masks.next_mask(1, []) is not None
    assert masks.next_mask(2, []) is None


def test_everything_together():
    one = request(
        allowed_token_ids=[1, 2, 3, 4], bad=((2,), (9, 4)), min_tokens=1, stops=[3], max_tokens=9
    )
    assert after(one) == {1, 4}
    assert after(one, 9) == {1, 3}
    assert after(one, 1) == {1, 3, 4}


@pytest.mark.parametrize(
    ("options", "outputs", "left"),
    [
        ({"allowed_token_ids": [2], "bad": ((2,),)}, (), {2}),
        ({"allowed_token_ids": [3], "stops": [3], "min_tokens": 4}, (), {3}),
        ({"allowed_token_ids": [2, 3], "bad": ((2,),), "stops": [3], "min_tokens": 4}, (), {3}),
        ({"allowed_token_ids": [2], "bad": ((9, 2),)}, (9,), {2}),
        ({"bad": tuple((i,) for i in range(VOCAB))}, (), EVERYTHING),
    ],
)
def test_a_ban_that_would_leave_nothing_yields(options, outputs, left):
    assert after(request(**options), *outputs) == left


def test_static_masks_are_not_made_anew():
    masks = masks_of(request(allowed_token_ids=[1], min_tokens=1, stops=[2]), VOCAB)
    assert masks.next_mask(3, []) is masks.next_mask(4, [])
    assert masks.next_mask(0, []) is masks.next_mask(0, [])


def test_only_bad_words_of_several_tokens_need_the_host():
    assert needs_host_history(request(bad=((5,), (6, 7))))
    assert not needs_host_history(request(bad=((5,),), min_tokens=3, allowed_token_ids=[1]))
