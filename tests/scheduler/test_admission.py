"""Admission: what can never be served is refused, with numbers and a fix that works."""

import re
from dataclasses import replace

import pytest

from rtp_jax.errors import InvalidArgument
from rtp_jax.request import Request
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.scheduler.admission import Limits, check_request, resolve_max_tokens

LIMITS = Limits(vocab_size=100, max_model_len=64, num_pages=21, page_size=4)  # 80 tokens fit
SMALL = replace(LIMITS, num_pages=11)  # 40 tokens fit


def request(num_prompt: int = 10, max_tokens: int = 5, *, bad=(), **options) -> Request:
    return Request(
        id="r-17",
        prompt_token_ids=tuple(range(num_prompt)),
        params=SamplingParams(max_tokens=None, **options),
        max_tokens=max_tokens,
        bad_word_ids=bad,
    )


@pytest.mark.smoke
def test_what_fits_is_accepted():
    check_request(request(63, 1), LIMITS)
    check_request(request(1, 63), LIMITS)
    check_request(request(30, 10), SMALL)
    check_request(request(stop_token_ids=[99], logit_bias={0: 1.0}, bad=((3, 99),)), LIMITS)


@pytest.mark.parametrize(
    ("one", "limits", "name", "field", "words"),
    [
        (request(0), LIMITS, "RTPJ-2001 PROMPT_EMPTY", "prompt", "0 tokens"),
        (
            replace(request(), prompt_token_ids=(1, 2, 100)),
            LIMITS,
            "RTPJ-2002 PROMPT_ID_UNKNOWN",
            "prompt_token_ids",
            r"100 at position 2 .* 100 ids.* \[0, 99\]",
        ),
        (
            replace(request(), prompt_token_ids=(1, -2)),
            LIMITS,
            "RTPJ-2002 PROMPT_ID_UNKNOWN",
            "prompt_token_ids",
            "-2 at position 1",
        ),
        (
            request(70),
            LIMITS,
            "RTPJ-2004 PROMPT_TOO_LONG",
            "prompt",
            "70 tokens.* max_model_len=64 .* room for 63 .* by 7 tokens",
        ),
        (
            request(60, 20),
            LIMITS,
            "RTPJ-2005 MAX_TOKENS_TOO_LARGE",
            "max_tokens",
            "max_tokens=20 .* 60 tokens.* leaves 4.* <= 4",
        ),
        (
            request(60, 4, min_tokens=5),
            LIMITS,
            "RTPJ-2006 MIN_TOKENS_TOO_LARGE",
            "min_tokens",
            "min_tokens=5.* leaves 4",
        ),
        (
            request(30, 20),
            SMALL,
            "RTPJ-2101 REQUEST_TOO_LARGE",
            "max_tokens",
            r"50 tokens \(30 prompt \+ max_tokens=20\), 40 fit \(10 pages of 4\)\. Lower max_tokens"
            " to <= 10, or raise kv_memory to fit 13 pages",
        ),
        (
            request(45, 1),
            SMALL,
            "RTPJ-2101 REQUEST_TOO_LARGE",
            "prompt",
            "Shorten the prompt to <= 39 tokens",
        ),
        *(
            (request(**options), LIMITS, "RTPJ-2003 OPTION_ID_UNKNOWN", field, "id 100,.* 100 ids")
            for field, options in {
                "stop_token_ids": {"stop_token_ids": [1, 100]},
                "logprob_token_ids": {"logprob_token_ids": [100]},
                "logit_bias": {"logit_bias": {100: 1.0}},
                "allowed_token_ids": {"allowed_token_ids": [5, 100]},
                "bad_words": {"bad": ((1, 100),)},
            }.items()
        ),
    ],
)
def test_what_never_fits_is_refused(one, limits, name, field, words):
    with pytest.raises(InvalidArgument, match=words) as caught:
        check_request(one, limits)
    assert str(caught.value).startswith(name)
    assert caught.value.field == field


@pytest.mark.parametrize("limits", [LIMITS, SMALL])
@pytest.mark.parametrize("num_prompt", [20, 35])
def test_the_fix_of_a_refusal_works(limits, num_prompt):
    with pytest.raises(InvalidArgument) as caught:
        check_request(request(num_prompt, 60), limits)
    fix = int(re.search(r"max_tokens to <= (\d+)", str(caught.value))[1])
    if limits is LIMITS:
        check_request(request(num_prompt, fix), limits)
        with pytest.raises(InvalidArgument):
            check_request(request(num_prompt, fix + 1), limits)


def test_without_max_tokens_context_and_memory_decide():
    assert resolve_max_tokens(10, None, LIMITS) == 54
    assert resolve_max_tokens(10, None, SMALL) == 30
    assert resolve_max_tokens(100, None, LIMITS) == 1  # check_request refuses the prompt
    assert resolve_max_tokens(10, 7, SMALL) == 7
    assert resolve_max_tokens(10, 700, SMALL) == 700  # check_request refuses it
