"""A fault on one request's path ends that request only: ten points, ten times each.

Its neighbours get the tokens that they get without it, no page stays taken, and the engine serves
the next request.
"""

import dataclasses
import json

import pytest

from rtp_jax import SamplingParams
from rtp_jax.engine import submission as submissions
from rtp_jax.errors import Internal
from tests.engine.workload import check_idle, small_engine, tokens

ROUNDS = 10
VICTIM_IDS = [77, 78, 79, 80]
PARAMS = SamplingParams(temperature=0.9, max_tokens=12, ignore_eos=True, logprobs=1, stop=["#@!"])
PROMPTS = [[5 + i, 9, 30 + i, 11] for i in range(6)]


class Fault(Exception):
    """What is injected."""


def fail_if(condition, original):
    """Wrap a function so that it fails where the condition holds for its arguments."""

    def wrapped(*args, **kwargs):
        if condition(*args, **kwargs):
            raise Fault("injected")
        return original(*args, **kwargs)

    return wrapped


def is_victim(sequence) -> bool:
    """Tell the victim by its prompt."""
    return list(sequence.request.prompt_token_ids) == VICTIM_IDS


def has_victim(plan) -> bool:
    """Tell whether the victim takes part in a step."""
    return any(is_victim(row.sequence) for row in plan.rows)


def in_prepare(patch, engine):
    runner = engine._parts.runner
    patch.setattr(runner, "prepare", fail_if(has_victim, runner.prepare))


def in_dispatch(patch, engine):
    runner, plans = engine._parts.runner, []
    prepare, execute = runner.prepare, runner.execute

    def remember(plan):
        plans.append(plan)
        return prepare(plan)

    patch.setattr(runner, "prepare", remember)
    patch.setattr(runner, "execute", fail_if(lambda _: has_victim(plans[-1]), execute))


def on_the_device(patch, engine):
    runner = engine._parts.runner
    prepare, execute, plans = runner.prepare, runner.execute, {}

    def remember(plan):
        batch = prepare(plan)
        plans[id(batch.vector)] = plan
        return batch

    def run(batch):
        step = execute(batch)
        if has_victim(plans[id(batch.vector)]):
            patch.setattr(step, "to_host", fail_if(lambda: True, step.to_host))
        return step

    patch.setattr(runner, "prepare", remember)
    patch.setattr(runner, "execute", run)


def not_a_number(patch, engine):
    scheduler, commit = engine._parts.scheduler, engine._parts.scheduler.commit

    def spoiled(plan, result, now_s):
        at, failed = 0, set()
        for row in plan.rows:
            if is_victim(row.sequence):
                failed |= set(range(at, at + row.num_logit_rows))
            at += row.num_logit_rows
        return commit(plan, dataclasses.replace(result, failed_rows=frozenset(failed)), now_s)

    patch.setattr(scheduler, "commit", spoiled)


def in_scheduler(patch, engine):
    scheduler = engine._parts.scheduler
    victim = fail_if(lambda r, _: list(r.prompt_token_ids) == VICTIM_IDS, scheduler.add)
    patch.setattr(scheduler, "add", victim)


def in_tokenizer(patch, engine):
    builder = engine._submission.builder
    broken = fail_if(lambda prompt: list(prompt.token_ids) == VICTIM_IDS, builder._prompt_ids)
    patch.setattr(builder, "_prompt_ids", broken)


def in_seed(patch, engine):
    builder = engine._submission.builder
    patch.setattr(
        builder, "_resolve_seed", fail_if(lambda seed, _: seed == 99, builder._resolve_seed)
    )


def in_assembler(patch, engine):
    broken = fail_if(
        lambda request, _: list(request.prompt_token_ids) == VICTIM_IDS, submissions.assemblers_of
    )
    patch.setattr(submissions, "assemblers_of", broken)


def in_delivery(method: str):
    """Make a fault in one of delivery's parts."""

    def inject(patch, engine):
        delivery = engine._parts.delivery

        def about_victim(live, *_):
            return list(live.request.prompt_token_ids) == VICTIM_IDS

        patch.setattr(delivery, method, fail_if(about_victim, getattr(delivery, method)))

    return inject


POINTS = {
    "tokenizer": in_tokenizer,
    "seed": in_seed,
    "text assembler": in_assembler,
    "scheduler": in_scheduler,
    "batch": in_prepare,
    "dispatch": in_dispatch,
    "device": on_the_device,
    "logits": not_a_number,
    "detokenizer": in_delivery("_add_text"),
    "logprobs": in_delivery("_add_logprobs"),
}


@pytest.fixture(scope="module")
def expected(engine):
    """What the neighbours get without any fault."""
    params = [dataclasses.replace(PARAMS, seed=i) for i in range(len(PROMPTS))]
    return tokens(engine.generate(PROMPTS, params, use_tqdm=False))


@pytest.mark.capability("fault walls")
@pytest.mark.parametrize("point", POINTS)
def test_a_fault_ends_its_request_only(engine, expected, point, monkeypatch, caplog):
    caplog.set_level("CRITICAL")
    params = [dataclasses.replace(PARAMS, seed=i) for i in range(len(PROMPTS))]
    with monkeypatch.context() as patch:
        POINTS[point](patch, engine)
        for round_ in range(ROUNDS):
            at = round_ % (len(PROMPTS) + 1)
            prompts = [*PROMPTS[:at], VICTIM_IDS, *PROMPTS[at:]]
            seeded = [*params[:at], dataclasses.replace(PARAMS, seed=99), *params[at:]]
            outputs = engine.generate(prompts, seeded, on_error="return", use_tqdm=False)
            victim = outputs.pop(at)
            assert isinstance(victim.error, Internal)
            assert victim.outputs[0].finish_reason == "error"
            assert tokens(outputs) == expected
            assert all(output.error is None for output in outputs)
    check_idle(engine)
    (after,) = engine.generate([VICTIM_IDS], PARAMS, use_tqdm=False)
    assert after.error is None


def test_a_failing_scheduler_ends_what_is_live_and_serves_the_next(engine, monkeypatch, caplog):
    caplog.set_level("CRITICAL")
    scheduler = engine._parts.scheduler
    with monkeypatch.context() as patch:
        schedule, calls = scheduler.schedule, []

        def fails_once(*args, **kwargs):
            calls.append(args)
            if len(calls) == 1:  # with nothing in flight, so that no step can be blamed
                raise Fault("injected")
            return schedule(*args, **kwargs)

        patch.setattr(scheduler, "schedule", fails_once)
        outputs = engine.generate(PROMPTS, PARAMS, on_error="return", use_tqdm=False)
        assert {str(output.error).split(":")[0] for output in outputs if output.error} == {
            "RTPJ-4104 SCHEDULER_FAILED"
        }
        assert all(output.error is None for output in engine.generate(PROMPTS, PARAMS))
    check_idle(engine)


def test_a_failed_request_leaves_a_record(tiny_model, program_cache, tmp_path, monkeypatch, caplog):
    caplog.set_level("CRITICAL")
    with small_engine(tiny_model, program_cache, dump_failed=str(tmp_path / "failed")) as engine:
        with monkeypatch.context() as patch:
            in_delivery("_add_text")(patch, engine)
            params = dataclasses.replace(PARAMS, seed=99)
            (output,) = engine.generate([VICTIM_IDS], params, on_error="return")
        (file,) = (tmp_path / "failed").iterdir()
        record = json.loads(file.read_text())
        assert record["prompt_token_ids"] == VICTIM_IDS
        assert record["error"] == str(output.error)
        again = SamplingParams(**record["sampling_params"])
        assert (again.seed, again.stops) == (params.seed, params.stops)
        assert engine.generate([record["prompt_token_ids"]], again)[0].error is None
        check_idle(engine)
