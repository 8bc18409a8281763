"""Who advances in the next step?

    add -> waiting -> [ schedule -> (the device computes) -> commit ] -> ended
              ^------------- preempted -------------'

A step takes one token of every running sequence that decodes, then fills up with chunks of
prompts: of those that run already, then of new ones.  All goes in the order of `tracked.Key`:
priority, improved by waiting, then arrival.

Step n+1 is scheduled before step n is committed.  A sequence that ends at step n is in n+1 already,
and `commit` drops that token.  Its slot and pages are reused at once: device programs run in the
order in which they are enqueued, so whatever n+1 still writes to them is overwritten later.

Read next: `decode.py`, `prefill.py`, `preemption.py`, and `page_ledger.py` for pages.
"""

import itertools

from rtp_jax.cache.hierarchy import Hierarchy
from rtp_jax.cache.page_events import PageEvents
from rtp_jax.cache.page_identity import PageIdentity
from rtp_jax.config import SchedulerConfig
from rtp_jax.errors import ResourceExhausted, RtpError
from rtp_jax.page_record import PageMoves
from rtp_jax.request import (
    FinishReason,
    Phase,
    Request,
    Sequence,
    StepPlan,
    StepResult,
    StepRow,
    TokenOutput,
)
from rtp_jax.scheduler import outcome
from rtp_jax.scheduler.backlog import Backlog, backlog_of
from rtp_jax.scheduler.counters import Counters
from rtp_jax.scheduler.decode import decode_rows
from rtp_jax.scheduler.expiry import Expiry
from rtp_jax.scheduler.newcomers import Newcomers
from rtp_jax.scheduler.page_ledger import PageLedger
from rtp_jax.scheduler.prefill import prefill_rows
from rtp_jax.scheduler.room import Room
from rtp_jax.scheduler.roster import Roster
from rtp_jax.scheduler.tracked import Tracked, group_of, known_tokens


class Scheduler:
    """The sequences of one engine: who waits, who runs, and what is in flight."""

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        num_pages: int,
        page_size: int,
        max_model_len: int,
        vocab_size: int,
        page_key: bytes,
        model_epoch: str,
        kv_scheme: str,
        prefix_caching: bool,
        max_logit_rows: int,
        page_events: PageEvents | None = None,
        hierarchy: Hierarchy | None = None,
    ):
        """Start with empty pages.

        Args:
          config: how much runs at once, and what waits.
          num_pages: the null page included.
          page_size: tokens.
          max_model_len: tokens of prompt and output together.
          vocab_size: ids that a mask has bits for.
          page_key: key of the page hash; whoever has it computes the same page identities.
          model_epoch: which weights computed the pages.
          kv_scheme: how the pages are encoded.
          prefix_caching: whether pages outlive their sequences.
          max_logit_rows: of one step.
          page_events: told of the pages that can be found; None: nobody follows them.
          hierarchy: tiers below the device, if there are any.
        """
        identity = PageIdentity(
            page_key, page_size=page_size, model_epoch=model_epoch, kv_scheme=kv_scheme
        )
        self.counters = Counters()
        self._config = config
        self._max_model_len, self._vocab_size = max_model_len, vocab_size
        self._max_logit_rows = max_logit_rows
        self._longest_chunk = config.longest_chunk
        self._ledger = PageLedger(
            num_pages,
            page_size,
            identity if prefix_caching else None,
            self.counters,
            page_events or PageEvents(),
            hierarchy,
        )
        self._hierarchy = hierarchy
        self._roster = Roster(
            num_slots=min(config.max_num_seqs, max_logit_rows),  # each samples in most steps
            ledger=self._ledger,
            counters=self.counters,
            hierarchy=hierarchy,
        )
        self._newcomers = Newcomers(self._roster, self._longest_chunk)
        self._expiry = Expiry(config.max_queue_s)
        self._in_flight: dict[int, tuple[StepPlan, tuple[Tracked, ...]]] = {}  # oldest first
        self._plan_numbers, self._sequence_numbers = itertools.count(), itertools.count()

    @property
    def has_work(self) -> bool:
        """True while any sequence lives."""
        return bool(self._roster.groups)

    @property
    def has_moves(self) -> bool:
        """True while pages are to be read or written, whether or not a step follows."""
        return bool(self._ledger.moves)

    @property
    def is_parked(self) -> bool:
        """True if nothing can advance before pages arrive from a tier below the device."""
        return len(self._roster.parking) > 0 and not self._roster.running

    @property
    def num_parked(self) -> int:
        """Sequences that wait for pages from a tier below the device."""
        return len(self._roster.parking)

    @property
    def num_running(self) -> int:
        """Sequences that hold pages."""
        return len(self._roster.running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait, new or preempted."""
        return len(self._roster.waiting)

    def loads(self) -> dict[str, int]:
        """Say how busy the scheduler is."""
        pool = self._ledger.pool
        return {
            "num_running": self.num_running,
            "num_waiting": self.num_waiting,
            "num_pages": pool.num_pages - 1,
            "num_free_pages": pool.num_free,
            "num_cached_pages": pool.num_evictable,
            "page_size": self._ledger.page_size,
            "max_num_seqs": self._config.max_num_seqs,
        }

    def backlog(self) -> Backlog:
        """Say how many tokens are to be computed; from any thread, and a step old at most."""
        return backlog_of(self._roster.running.copied(), self._roster.waiting.copied())

    def add(self, request: Request, now_s: float) -> None:
        """Let a request wait that `admission.check_request` accepts, or say that too many do."""
        roster, config = self._roster, self._config
        assert request.id not in roster.groups, f"a live request has the id {request.id}"
        most = config.max_waiting + len(roster.free_slots)  # these start at once
        if roster.num_new >= most:
            raise ResourceExhausted(
                f"RTPJ-2201 QUEUE_FULL: {roster.num_new} requests wait before request"
                f" {request.id}, max_waiting={config.max_waiting} may. Retry later, raise"
                " max_waiting, or add workers.",
                retry_after_s=roster.pace.retry_after_s(),
            )
        group = group_of(
            request,
            added_s=now_s,
            numbers=self._sequence_numbers,
            ageing_s=config.ageing_s,
            vocab_size=self._vocab_size,
            longest=self._max_model_len - len(request.prompt_token_ids),
        )
        roster.add(group)
        self._expiry.add(group)

    def schedule(self, now_s: float, *, only: Sequence | None = None) -> StepPlan | None:
        """Decide the next step; None: nothing can advance before the next commit, or at all.

        With `only`, nobody but this sequence advances, even if others lose their pages for it.
        A plan shares the page lists of its sequences: read them before the next call.
        """
        counters, roster = self.counters, self._roster
        room = Room(self._config.max_num_batched_tokens, self._max_logit_rows)
        preemptions = counters.preemptions
        chosen = decode_rows(roster, room, only)
        num_decoding = len(chosen)
        chosen += prefill_rows(roster, room, self._longest_chunk, only)
        if counters.preemptions == preemptions:  # else there is no page for anybody new
            chosen += self._newcomers.rows(room, now_s, only)
        if not chosen:
            return None
        tracked, rows = zip(*chosen, strict=True)
        for each in tracked[num_decoding:]:
            # From the next plan on others may read these pages.
            self._ledger.remember(each, computed=False)
        plan = StepPlan(next(self._plan_numbers), rows)
        self._in_flight[plan.number] = plan, tracked
        counters.count_plan(plan, num_decoding)
        return plan

    def take_moves(self) -> PageMoves:
        """Hand over the copies that come before the step just scheduled, or before the next."""
        return self._ledger.moves.take()

    def commit(self, plan: StepPlan, result: StepResult, now_s: float) -> list[TokenOutput]:
        """Take the tokens of the oldest step in flight into its sequences."""
        if plan.number not in self._in_flight:
            return []  # given up by `requeue_running`
        assert plan.number == next(iter(self._in_flight)), f"plan {plan.number} is not the oldest"
        tracked_rows = self._in_flight.pop(plan.number)[1]
        outputs, at = [], 0
        for tracked, row in zip(tracked_rows, plan.rows, strict=True):
            tracked.steps_in_flight -= 1
            tracked.sequence.num_in_flight -= row.samples
            if row.num_logit_rows:
                if tracked.sequence.phase is not Phase.FINISHED:
                    outputs.append(self._commit_row(tracked, plan, row, result, at, now_s))
                else:
                    self.counters.surplus_tokens += row.samples
                at += row.num_logit_rows
            elif tracked.prefill_only and row.start + row.count == tracked.prefill_end:
                outputs += self._end_all([tracked], FinishReason.LENGTH)
        return outputs

    def finish(self, request_id: str, index: int, num_output_tokens: int) -> None:
        """End a sequence at a stop string that delivery found; delivery has said so already."""
        group = self._roster.groups.get(request_id)
        if group is None or (tracked := group.members[index]).sequence.phase is Phase.FINISHED:
            return  # it ended by itself in the meantime
        self._roster.end(tracked)
        del tracked.sequence.output_ids[num_output_tokens:]

    def abort(self, request_id: str) -> list[TokenOutput]:
        """End a request that nobody wants any more; unknown ids end nothing."""
        group = self._roster.groups.get(request_id)
        return [] if group is None else self._end_all(group.members, FinishReason.ABORT)

    def abort_all(self, error: RtpError | None = None) -> list[TokenOutput]:
        """End everything, because of an error or because the engine closes."""
        live = [member for group in self._roster.groups.values() for member in group.members]
        reason = FinishReason.ABORT if error is None else FinishReason.ERROR
        return self._end_all(live, reason, error)

    def expire(self, now_s: float) -> list[TokenOutput]:
        """End the requests whose deadline has passed or that have waited too long."""
        return [
            output
            for group, error in self._expiry.expired(now_s)
            for output in self._end_all(group.members, FinishReason.ABORT, error)
        ]

    def fail(self, sequence: Sequence, error: RtpError) -> list[TokenOutput]:
        """End one sequence with an error."""
        tracked = self._roster.find(sequence)
        return [] if tracked is None else self._end_all([tracked], FinishReason.ERROR, error)

    def requeue_running(self) -> None:
        """Recover from failed steps: nothing is in flight and no page holds anything any more.

        Every running sequence goes back to its place in the queue with the tokens it has.
        """
        self._in_flight.clear()
        for group in self._roster.groups.values():
            for tracked in group.members:
                tracked.steps_in_flight = tracked.sequence.num_in_flight = 0
        for tracked in self._roster.running.copied():
            self._roster.suspend(tracked)
        self._ledger.forget_all()
        self._ledger.moves.drop()

    def reset_prefix_cache(self) -> None:
        """Forget all pages that could be found; sequences keep those that they hold."""
        self._ledger.forget_all()
        if self._hierarchy is not None:
            self._hierarchy.clear()

    def close(self) -> None:
        """Give up the copies that nobody will enqueue any more."""
        self._ledger.moves.drop()

    def _commit_row(
        self,
        tracked: Tracked,
        plan: StepPlan,
        row: StepRow,
        result: StepResult,
        at: int,
        now_s: float,
    ) -> TokenOutput:
        sequence, last = tracked.sequence, at + row.num_logit_rows - 1
        if result.failed_rows and not result.failed_rows.isdisjoint(range(at, last + 1)):
            self._ledger.distrust(tracked)
            error = outcome.not_a_number(sequence, plan)
            return self._end_all([tracked], FinishReason.ERROR, error)[0]
        output = outcome.output_of(sequence, [])
        output.prompt_logprobs = outcome.prompt_logprobs(row, result, at)
        sequence.num_prompt_logprobs += len(output.prompt_logprobs or ())
        if row.samples:
            if sequence.first_token_s is None:
                sequence.first_token_s = now_s
            token_id = int(result.token_ids[last])
            sequence.output_ids.append(token_id)
            output.token_ids.append(token_id)
            output.logprobs = outcome.token_logprobs(sequence, result, last)
            output.finish_reason = outcome.finish_reason(tracked, token_id)
            if output.finish_reason is FinishReason.STOP:
                output.stop_reason = outcome.stop_reason(sequence, token_id)
            if output.finish_reason is not None:
                self._roster.end(tracked)
            elif tracked.indexing and known_tokens(sequence) >= tracked.next_page_end:
                self._ledger.remember(tracked)
        return output

    def _end_all(
        self, tracked: list[Tracked], reason: FinishReason, error: RtpError | None = None
    ) -> list[TokenOutput]:
        outputs = []
        for each in tracked:
            if each.sequence.phase is not Phase.FINISHED:
                self._roster.end(each)
                output = outcome.output_of(each.sequence, [], reason)
                output.error = error
                outputs.append(output)
        return outputs
