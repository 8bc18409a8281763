"""A request that is cut anywhere and goes on in another engine answers as if it had not been cut.

The unbroken answer is the reference: for every place at which a client may lose its worker, what
it had and what the second engine adds must be that answer, in ids, text, log-probabilities and end.
"""

import asyncio
import dataclasses
from dataclasses import dataclass, field

import pytest

from rtp_jax import SamplingParams
from rtp_jax.errors import InvalidArgument
from rtp_jax.outputs import CompletionOutput
from rtp_jax.sampling_params import OutputKind
from tests.engine.workload import Case, cases, check_idle, small_engine

NUM_KINDS = 13  # of `workload.cases`: each sampling option
LOGPROB_ERROR = 1e-3  # float32, other batches than in the unbroken run


@dataclass
class Held:
    """What a client has of one completion."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[dict] = field(default_factory=list)
    ended: tuple | None = None

    def add(self, part: CompletionOutput) -> None:
        """Take what came."""
        self.token_ids = self.token_ids + part.token_ids
        self.text += part.text
        self.logprobs = self.logprobs + (part.logprobs or [])
        if part.finish_reason is not None:
            self.ended = part.finish_reason, part.stop_reason


@pytest.fixture(scope="module")
def other_engine(tiny_model, program_cache):
    """The engine that takes over, which has computed nothing of any request before."""
    with small_engine(tiny_model, program_cache, enable_prefix_caching=False) as engine:
        yield engine
        check_idle(engine)


def unbroken(engine, case: Case) -> list[list[Held]]:
    """Run a request; return what its client has at the start and after each output."""
    held = [Held() for _ in range(case.params.n)]
    stages = [held]
    for output in engine.stream(case.prompt, case.params):
        held = [dataclasses.replace(each) for each in held]
        for part in output.outputs:
            held[part.index].add(part)
        stages.append(held)
    return stages


async def go_on(engine, case: Case, held: list[Held]) -> list[Held]:
    """Let another engine finish what a client has."""
    params = dataclasses.replace(case.params, output_kind=OutputKind.DELTA)
    held = [dataclasses.replace(each) for each in held]
    resume = [each.token_ids for each in held]
    async for output in engine.stream_async(case.prompt, params, resume=resume):
        assert output.error is None
        for part in output.outputs:
            held[part.index].add(part)
    return held


def check_equal(whole: Held, resumed: Held) -> None:
    """Hold a resumed completion against the unbroken one."""
    assert resumed.token_ids == whole.token_ids
    assert resumed.text == whole.text
    assert resumed.ended == whole.ended
    assert len(resumed.logprobs) == len(whole.logprobs)
    for mine, theirs in zip(resumed.logprobs, whole.logprobs, strict=True):
        first = next(iter(theirs))
        assert next(iter(mine)) == first
        assert mine[first].logprob == pytest.approx(theirs[first].logprob, abs=LOGPROB_ERROR)


def check_cuts(engine, other_engine, case: Case) -> list[list[Held]]:
    """Cut a request at every place."""
    stages = unbroken(engine, case)

    async def all_cuts():
        return await asyncio.gather(*(go_on(other_engine, case, held) for held in stages))

    for resumed in asyncio.run(all_cuts()):
        for whole, mine in zip(stages[-1], resumed, strict=True):
            check_equal(whole, mine)
    return stages


@pytest.mark.capability("resuming")
@pytest.mark.parametrize("kind", range(NUM_KINDS))
def test_each_sampling_option_cut_after_every_token(engine, other_engine, kind):
    case = cases(NUM_KINDS)[kind]
    stages = check_cuts(engine, other_engine, case)
    assert len(stages) > 2


def test_a_stop_string_and_characters_lie_across_the_seam(engine, other_engine):
    """The tokenizer is one of bytes and the model random: most characters are cut somewhere."""
    base = SamplingParams(temperature=1.0, max_tokens=40, seed=5, ignore_eos=True)
    whole = unbroken(engine, Case([5, 6, 7], base))[-1][0]
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 6]  # several tokens long
    for include in (False, True):
        params = dataclasses.replace(base, stop=[stop], include_stop_str_in_output=include)
        stages = check_cuts(engine, other_engine, Case([5, 6, 7], params))
        assert stages[-1][0].ended == ("stop", stop)
        assert any("�" in held[0].text for held in stages)


def test_completions_that_had_ended_end_again_and_bring_nothing(engine, other_engine):
    params = SamplingParams(temperature=1.0, n=3, max_tokens=6, seed=3, ignore_eos=True)
    last = unbroken(engine, Case([9] * 20, params))[-1]
    some = [Held(last[0].token_ids[:2], "", []), last[1], last[2]]

    async def run(resume):
        options = {"resume": [each.token_ids for each in resume]}
        outputs = other_engine.stream_async(
            [9] * 20, dataclasses.replace(params, output_kind="final_only"), **options
        )
        return [output async for output in outputs][-1]

    output = asyncio.run(run(some))
    assert [part.token_ids for part in output.outputs] == [last[0].token_ids[2:], [], []]
    assert [part.finish_reason for part in output.outputs] == ["length"] * 3
    output = asyncio.run(run(last))  # none is left: nothing runs at all
    assert [(part.token_ids, part.text) for part in output.outputs] == [([], "")] * 3
    assert output.finished


def test_prompt_logprobs_are_reported_once(engine, other_engine):
    params = SamplingParams(temperature=0.0, max_tokens=4, prompt_logprobs=1, ignore_eos=True)
    whole = unbroken(engine, Case([9] * 20, params))[-1][0]

    async def run(resume):
        params_now = dataclasses.replace(params, output_kind="final_only")
        outputs = other_engine.stream_async([9] * 20, params_now, resume=resume)
        return [output async for output in outputs][-1]

    assert asyncio.run(run([whole.token_ids[:1]])).prompt_logprobs is None
    assert len(asyncio.run(run([[]])).prompt_logprobs) == 20


REFUSED = [
    ([[1], [2]], {}, "2 outputs were given, n=1"),
    ([[5] * 9], {}, "completion 0 has 9 tokens, max_tokens=8"),
    ([[5, 511]], {}, "completion 0 has ids outside"),
    ([[5, 7, 9]], {"stop_token_ids": [7]}, "1 tokens of completion 0 follow the stop token 7"),
    ([[40, 41, 42, 43]], {"stop": ["H"]}, "1 tokens of completion 0 follow the stop string 'H'"),
]


@pytest.mark.parametrize(("resume", "options", "words"), REFUSED)
def test_output_that_no_answer_had_is_refused(engine, resume, options, words):
    if "stop" in options:
        at = resume[0][2]
        options = {"stop": [engine.tokenizer.decode([at])]}
        words = f"1 tokens of completion 0 follow the stop string {options['stop'][0]!r}"
    params = SamplingParams(max_tokens=8, **options)

    async def run():
        return [each async for each in engine.stream_async([5], params, resume=resume)]

    with pytest.raises(InvalidArgument, match="RTPJ-2007 RESUME_IMPOSSIBLE") as refused:
        asyncio.run(run())
    assert words in str(refused.value)
    assert refused.value.field == "resume"
