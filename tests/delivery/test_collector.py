"""Deltas that are joined before they are read say the same as deltas read one by one."""

import random

from rtp_jax.delivery.collector import Collector, Delta, joined
from rtp_jax.outputs import Logprob
from rtp_jax.request import Request
from rtp_jax.sampling_params import SamplingParams


def deltas(rng: random.Random) -> list[Delta]:
    """Make the deltas of one completion with logprobs, ending in a stop."""
    made = []
    for at in range(rng.randint(1, 12)):
        ids = [rng.randint(0, 99) for _ in range(rng.randint(0, 2))]
        table = [{i: Logprob(-0.5 * i, 1, str(i))} for i in ids]
        total = sum(-0.5 * i for i in ids)
        made.append(Delta("r", 0, f"<{at}>", ids, table, total, delivered_s=float(at)))
    made[-1].finish_reason, made[-1].stop_reason = "stop", "END"
    made[0].prompt_logprobs = [{7: Logprob(-1.0, 2, "7")}]
    return made


def test_joining_changes_nothing_but_the_number_of_deltas():
    params = SamplingParams(logprobs=1, prompt_logprobs=1)
    request = Request(id="r", prompt_token_ids=(3, 7), params=params)
    for seed in range(300):
        rng = random.Random(seed)
        one_by_one, together = Collector(request, 1), Collector(request, 1)
        unread = None
        for delta in deltas(rng):
            one_by_one.add(delta)
            unread = delta if unread is None else joined(unread, delta)
            if rng.random() < 0.4:
                together.add(unread)
                unread = None
        if unread is not None:
            together.add(unread)
        assert together.output.outputs == one_by_one.output.outputs
        assert together.output.prompt_logprobs == one_by_one.output.prompt_logprobs
        assert together.output.finished
