"""How far is a simulated worker from a real one?

    python -m bench.simulated_worker MODEL TRACE --json bench/results/simulated_worker.json

An engine in this process serves the first requests of a trace as they come, lengths scaled as in
`bench/routing.py`.  Step times are fitted to its first `--fitted` requests alone.  Then a simulated
worker with that fit serves the same requests, and the rest of them is compared: the part that the
fit has not seen.
"""

import argparse
import asyncio
import time
from dataclasses import replace

from bench.record import write_record
from bench.routing import BUDGET, LENGTH_SCALE, PAGE_SIZE, facts, requests_of
from rtp_jax import Engine, SamplingParams
from rtp_jax.benchmark.trace import Trace, read_trace
from rtp_jax.request import StepPlan
from rtp_jax.router.facts import StepSample
from rtp_jax.router.predictor import StepFit, Terms, step_seconds
from rtp_jax.router.router import Router
from rtp_jax.router.simulated_worker import SimulatedWorker
from rtp_jax.router.simulator import Served, Simulation, percentile

MAX_NUM_SEQS = 16
WARM_UP = 4


class Measured:
    """Steps of an engine, each from its launch, or the end of the one before, to its results."""

    def __init__(self, engine: Engine):
        self.steps: list[tuple[float, StepSample]] = []  # each with the time of its end
        self._launched: dict[int, float] = {}
        self._arrived_s = 0.0
        runner, scheduler = engine._parts.runner, engine._parts.scheduler
        self._prepare, self._commit = runner.prepare, scheduler.commit
        runner.prepare, scheduler.commit = self._at_launch, self._at_end

    def _at_launch(self, plan: StepPlan, *args, **kwargs):
        self._launched[id(plan)] = time.perf_counter()
        return self._prepare(plan, *args, **kwargs)

    def _at_end(self, plan: StepPlan, *args, **kwargs):
        now_s = time.perf_counter()
        began_s = max(self._launched.pop(id(plan)), self._arrived_s)
        self._arrived_s = now_s
        decoding = sum(row.count == 1 and row.start >= row.sequence.num_prompt for row in plan.rows)
        context = sum(row.start + row.count for row in plan.rows)
        sample = StepSample(plan.num_tokens - decoding, decoding, context, now_s - began_s)
        self.steps.append((now_s, sample))
        return self._commit(plan, *args, **kwargs)


async def serve(engine: Engine, trace: Trace, scale: float) -> list[dict]:
    """Send the requests as they came; return what was seen of each."""
    vocab_size = engine._parts.info.vocab_size
    prompts = list(trace.prompts(vocab_size, (7,)))
    warm = [engine.stream_async(list(range(9, 40)), _params(8)) for _ in range(WARM_UP)]
    await asyncio.gather(*(_drain(stream) for stream in warm))
    began_s = time.perf_counter()

    async def one(number: int) -> dict:
        line = trace.lines[number]
        await asyncio.sleep((line.at_s or 0.0) * scale - (time.perf_counter() - began_s))
        sent_s = time.perf_counter()
        params = _params(line.num_output_tokens or 1)
        seen = {"sent_s": sent_s}
        async for output in engine.stream_async(list(prompts[number]), params):
            seen.setdefault("ttft_s", time.perf_counter() - sent_s)
            seen["reused"] = output.num_cached_tokens
        seen["whole_s"] = time.perf_counter() - sent_s
        return seen

    return await asyncio.gather(*(one(i) for i in range(len(trace.lines))))


def simulate(trace: Trace, fit: Terms, num_pages: int, scale: float) -> list[Served]:
    """Serve the same requests by a worker that only takes time."""
    worker = SimulatedWorker(facts(0, num_pages), fit, seed=0)
    return Simulation(Router(), [worker], requests_of(trace, scale)).run().served


def main(options: argparse.Namespace) -> None:
    """Print what was measured beside what was simulated."""
    trace = read_trace(
        options.trace, most=options.requests, length_scale=LENGTH_SCALE, time_scale=1.0
    )
    fits = [
        line
        for line in trace.lines
        if (line.num_prompt_tokens or 1) + (line.num_output_tokens or 1) < options.max_model_len
    ]
    trace = replace(trace, lines=tuple(fits))
    scale = options.requests / options.rate / max(line.at_s or 0.0 for line in trace.lines)
    engine = Engine(
        options.model,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=BUDGET,
        max_model_len=options.max_model_len,
        page_size=PAGE_SIZE,
        kv_memory=int(options.kv_gb * 1e9),
        skip_tokenizer_init=True,
    )
    with engine:
        measured = Measured(engine)
        seen = asyncio.run(serve(engine, trace, scale))
        num_pages = engine.metrics.num_pages
    fitted = StepFit()
    from_s = seen[options.fitted]["sent_s"]
    known = [step for at_s, step in measured.steps if at_s <= from_s]
    for step in known:
        fitted.learn(step)
    unseen = [step for at_s, step in measured.steps if at_s > from_s]
    served = simulate(trace, fitted.coefficients, num_pages, scale)[options.fitted :]
    rows = [of_steps(unseen, fitted.coefficients), *compared(seen[options.fitted :], served)]
    print(f"{len(known)} of {len(measured.steps)} steps fitted: {fitted.coefficients}")
    for name, real, simulated in rows:
        print(f"{name:20}{real:12.4g}{simulated:12.4g}{simulated / max(real, 1e-9) - 1:+10.1%}")
    if options.json:
        figures = {"model": options.model.rsplit("/", 1)[-1], "rate": options.rate, "rows": rows}
        figures |= {"requests": len(served), "fit": fitted.coefficients}
        write_record(options.json, "simulated_worker", ("jax", "jaxlib"), figures)


def of_steps(steps: list[StepSample], fit: Terms) -> tuple[str, float, float]:
    """Add up the steps that the fit has not seen, measured and predicted."""
    predicted = sum(step_seconds(fit, prefill=p, decoding=d, context=c) for p, d, c, _ in steps)
    return "all steps, s", sum(step.seconds for step in steps), predicted


def compared(seen: list[dict], served: list[Served]) -> list[tuple[str, float, float]]:
    """List figures, measured and simulated."""
    ttft = [one["ttft_s"] for one in seen], [one.ttft_s for one in served]
    whole = [one["whole_s"] for one in seen], [one.ended_s - one.request.at_s for one in served]
    rows = [
        (f"{name} p{share * 100:.0f}", percentile(real, share), percentile(simulated, share))
        for name, (real, simulated) in (("TTFT, s", ttft), ("whole, s", whole))
        for share in (0.5, 0.95)
    ]
    reused = sum(one["reused"] for one in seen), sum(one.reused_tokens for one in served)
    return [*rows, ("reused tokens", *map(float, reused))]


def _params(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)


async def _drain(stream) -> None:
    async for _ in stream:
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or name")
    parser.add_argument("trace", help="JSON lines: timestamp, input_length, hash_ids, ...")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--fitted", type=int, default=40, help="requests that the fit sees")
    parser.add_argument("--rate", type=float, default=1.5, help="requests a second")
    parser.add_argument("--max-model-len", type=int, default=4096, help="longer ones are left out")
    parser.add_argument("--kv-gb", type=float, default=2.0)
    parser.add_argument("--json", help="file for the figures")
    main(parser.parse_args())
