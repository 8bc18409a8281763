"""Each option of `SamplingParams` means what vLLM's users expect, seen through the engine."""

import dataclasses

import pytest

from rtp_jax import SamplingParams
from tests.engine.workload import check_idle

PROMPT = [20, 21, 22, 23, 24]
FREE = SamplingParams(temperature=1.0, seed=11, max_tokens=24, ignore_eos=True)
GREEDY = dataclasses.replace(FREE, temperature=0.0)


def run(engine, params, prompt=PROMPT, **changes):
    """Generate for one prompt and return its first completion."""
    (output,) = engine.generate([prompt], dataclasses.replace(params, **changes), use_tqdm=False)
    check_idle(engine)
    return output.outputs[0]


@pytest.fixture(scope="module")
def free(engine):
    """What comes without any restriction."""
    return run(engine, FREE)


@pytest.fixture(scope="module")
def greedy(engine):
    """The most likely continuation."""
    return run(engine, GREEDY)


@pytest.mark.capability("sampling")
def test_seeds_decide(engine, free):
    assert run(engine, FREE).token_ids == free.token_ids
    assert run(engine, FREE, seed=12).token_ids != free.token_ids
    first, second = (run(engine, FREE, seed=None).token_ids for _ in range(2))
    assert first != second
    big = run(engine, FREE, seed=2**63)
    assert run(engine, FREE, seed=2**63).token_ids == big.token_ids


def test_n_gives_different_completions_and_the_first_is_that_of_one(engine, free):
    params = dataclasses.replace(FREE, n=4)
    (output,) = engine.generate([PROMPT], params, use_tqdm=False)
    assert [part.index for part in output.outputs] == [0, 1, 2, 3]
    assert output.outputs[0].token_ids == free.token_ids
    assert len({tuple(part.token_ids) for part in output.outputs}) == 4


@pytest.mark.parametrize("changes", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_narrow_sets_are_greedy(engine, greedy, changes):
    assert run(engine, FREE, **changes).token_ids == greedy.token_ids


def test_tiny_temperatures_are_greedy_and_reset_the_rest(engine, greedy):
    params = dataclasses.replace(GREEDY, top_k=5, top_p=0.5, min_p=0.3)
    assert run(engine, params).token_ids == greedy.token_ids
    assert SamplingParams(temperature=0.005).temperature == 0.01


def lead_over(engine, prompt, token_id):
    """How far the logit of a token is behind that of the most likely one."""
    params = {"logprobs": 1, "logprob_token_ids": [token_id], "max_tokens": 1}
    part = run(engine, GREEDY, prompt, **params)
    table = part.logprobs[0]
    return table[part.token_ids[0]].logprob - table[token_id].logprob


def biased_to_repeat(engine, prompt):
    """Find a token and the bias with which it comes twice, the second time by less than 2."""
    for token_id in range(30, 120):
        first = lead_over(engine, prompt, token_id)
        second = lead_over(engine, [*prompt, token_id], token_id)
        if first + 0.1 < second:
            return token_id, second + 1.0
    raise AssertionError("no token of the tiny model repeats itself less likely")


def test_each_penalty_ends_a_repetition(engine):
    token_id, bias = biased_to_repeat(engine, PROMPT)
    biased = dataclasses.replace(GREEDY, logit_bias={token_id: bias}, max_tokens=2)
    assert run(engine, biased).token_ids == [token_id] * 2
    for changes in ({"frequency_penalty": 2.0}, {"presence_penalty": 2.0}):
        ids = run(engine, biased, **changes).token_ids
        assert ids[0] == token_id != ids[1]
    assert run(engine, biased, repetition_penalty=500.0).token_ids != [token_id] * 2


def test_repetition_counts_the_prompt_and_the_others_do_not(engine):
    prompt = [7, 8, 9]
    biased = dataclasses.replace(
        GREEDY, logit_bias={7: lead_over(engine, prompt, 7) + 1.0}, max_tokens=1
    )
    assert run(engine, biased, prompt).token_ids == [7]
    assert run(engine, biased, prompt, presence_penalty=2.0, frequency_penalty=2.0).token_ids == [7]
    assert run(engine, biased, prompt, repetition_penalty=500.0).token_ids != [7]


def test_repetition_counts_cached_prompt_tokens(engine):
    prompt = [7, *range(100, 180)]
    biased = dataclasses.replace(
        GREEDY, logit_bias={7: 8.0}, max_tokens=1, repetition_penalty=500.0
    )
    first = run(engine, biased, prompt).token_ids
    (again,) = engine.generate([prompt], biased, use_tqdm=False)
    assert again.num_cached_tokens == 80
    assert again.outputs[0].token_ids == first != [7]


def test_allowed_and_biased_ids(engine):
    allowed = list(range(50, 60))
    assert set(run(engine, FREE, allowed_token_ids=allowed).token_ids) <= set(allowed)
    assert run(engine, GREEDY, logit_bias={33: 100.0}).token_ids == [33] * 24
    only = run(engine, GREEDY, allowed_token_ids=allowed, logit_bias={33: 100.0}).token_ids
    assert set(only) <= set(allowed)


def test_bad_words_never_appear(engine, free):
    word = engine.tokenizer.decode(free.token_ids[3:5])
    assert word in engine.tokenizer.decode(free.token_ids)
    clean = run(engine, FREE, bad_words=[word])
    bad = engine.tokenizer.encode(word, add_special_tokens=False)
    pairs = [clean.token_ids[i : i + len(bad)] for i in range(len(clean.token_ids))]
    assert bad not in pairs


def test_stop_tokens_stay_in_the_ids_and_not_in_the_text(engine, free):
    stop = free.token_ids[5]
    at = free.token_ids.index(stop)
    part = run(engine, FREE, stop_token_ids=[stop])
    assert (part.finish_reason, part.stop_reason) == ("stop", stop)
    assert part.token_ids == free.token_ids[: at + 1]
    assert part.text == engine.tokenizer.decode(free.token_ids[:at])
    shown = run(engine, FREE, stop_token_ids=[stop], include_stop_str_in_output=True)
    assert shown.text == engine.tokenizer.decode(free.token_ids[: at + 1])


def test_min_tokens_puts_the_end_off(engine, free):
    stop = free.token_ids[2]
    part = run(engine, FREE, stop_token_ids=[stop], min_tokens=10)
    assert len(part.token_ids) >= 10
    assert stop not in part.token_ids[:10]


def test_the_end_token_ends_and_can_be_ignored(engine):
    end = engine.info.eos_token_ids[0]
    biased = dataclasses.replace(GREEDY, logit_bias={end: 100.0})
    part = run(engine, biased, ignore_eos=False)
    assert (part.finish_reason, part.stop_reason, part.token_ids) == ("stop", None, [end])
    assert part.text == ""
    ignored = run(engine, biased, max_tokens=5)
    assert (ignored.finish_reason, ignored.token_ids) == ("length", [end] * 5)
    assert ignored.text == ""
    shown = run(engine, biased, max_tokens=2, skip_special_tokens=False)
    assert shown.text == engine.tokenizer.decode([end, end], skip_special_tokens=False) != ""


def test_stop_strings_in_the_output_on_demand(engine, free):
    stop = free.text[4:6]
    part = run(engine, FREE, stop=stop, include_stop_str_in_output=True)
    assert part.text == free.text[: free.text.index(stop) + len(stop)]
    assert part.stop_reason == stop


def test_no_text_without_detokenizing(engine, free):
    part = run(engine, FREE, detokenize=False)
    assert (part.text, part.token_ids) == ("", free.token_ids)


def test_long_prompts_are_cut_from_the_left(engine, free):
    part = run(engine, FREE, [99] * 50 + PROMPT, truncate_prompt_tokens=5)
    assert part.token_ids == free.token_ids
    longest = engine.info.max_model_len
    cut = run(engine, FREE, [99] * 2 * longest, truncate_prompt_tokens=-1, max_tokens=1)
    assert len(cut.token_ids) == 1


def test_no_max_tokens_fills_the_context(engine):
    part = run(engine, GREEDY, max_tokens=None)
    assert len(part.token_ids) == engine.info.max_model_len - len(PROMPT)
    assert part.finish_reason == "length"


@pytest.mark.capability("priorities")
def test_lower_priorities_start_first(engine):
    order = []
    long = dataclasses.replace(GREEDY, max_tokens=100)
    streams = [engine.stream([5 + i] * 10, long) for i in range(engine.info.max_num_seqs)]
    late = engine.stream([6] * 10, GREEDY, priority=5, output_kind="final_only")
    early = engine.stream([7] * 10, GREEDY, priority=-5, output_kind="final_only")
    for stream in streams:
        list(stream)
    for name, stream in (("late", late), ("early", early)):
        (output,) = list(stream)
        order.append((output.timing.queue_s, name))
    assert min(order)[1] == "early"
    check_idle(engine)
