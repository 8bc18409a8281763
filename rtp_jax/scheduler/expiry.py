"""Whose time is up?

A deadline holds from arrival to the last token; `max_queue_s` only until a request is admitted.
Both are looked up in the order in which they pass, so a call that finds nothing costs nothing.
"""

import heapq
from collections import deque
from collections.abc import Iterator

from rtp_jax.errors import DeadlineExceeded
from rtp_jax.scheduler.tracked import Group

SWEEP_AT = 64  # entries that are not worth a sweep


class Expiry:
    """Deadlines of live requests."""

    def __init__(self, max_queue_s: float | None):
        self._max_queue_s = max_queue_s
        self._deadlines: list[tuple[float, int, Group]] = []  # a heap
        self._queued: deque[Group] = deque()  # in the order in which they were added
        self._next_sweep = SWEEP_AT
        self._number = 0  # keeps groups out of comparisons

    def add(self, group: Group) -> None:
        """Watch a request."""
        if len(self._deadlines) + len(self._queued) >= self._next_sweep:
            self._forget_ended()
        if group.request.deadline_s is not None:
            self._number += 1
            heapq.heappush(self._deadlines, (group.request.deadline_s, self._number, group))
        if self._max_queue_s is not None:
            self._queued.append(group)

    def expired(self, now_s: float) -> Iterator[tuple[Group, DeadlineExceeded]]:
        """Take out the live requests whose time has passed, each with its error."""
        while self._deadlines and self._deadlines[0][0] <= now_s:
            group = heapq.heappop(self._deadlines)[2]
            if group.num_live:
                yield group, _missed_deadline(group, now_s)
        limit = self._max_queue_s
        while limit is not None and self._queued:
            group = self._queued[0]
            waits = group.num_live > 0 and not group.started
            if waits and now_s - group.added_s <= limit:
                return
            self._queued.popleft()
            if waits:
                yield group, _waited_too_long(group, now_s, limit)

    def _forget_ended(self) -> None:
        """Drop requests that ended before their time, each time as many again were added."""
        self._deadlines = [entry for entry in self._deadlines if entry[2].num_live]
        heapq.heapify(self._deadlines)
        self._queued = deque(group for group in self._queued if group.num_live)
        self._next_sweep = 2 * (len(self._deadlines) + len(self._queued)) + SWEEP_AT


def _missed_deadline(group: Group, now_s: float) -> DeadlineExceeded:
    request = group.request
    assert request.deadline_s is not None
    where = "while it waited" if not group.started else f"after {_num_output(group)} output tokens"
    return DeadlineExceeded(
        f"RTPJ-4001 DEADLINE_EXCEEDED: request {request.id} was {now_s - group.added_s:.3f} s old"
        f" when its deadline passed, {now_s - request.deadline_s:.3f} s ago, {where}. Allow more"
        " time, lower max_tokens, or send less at once."
    )


def _waited_too_long(group: Group, now_s: float, limit: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"RTPJ-4006 QUEUE_TIMEOUT: request {group.request.id} waited {now_s - group.added_s:.3f} s"
        f" for its first step, max_queue_s={limit:g} is allowed. Retry later, raise max_queue_s,"
        " or add workers."
    )


def _num_output(group: Group) -> int:
    return sum(len(member.sequence.output_ids) for member in group.members)
