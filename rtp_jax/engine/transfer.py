"""What an engine computes for others and gets from others: its role, its offers, its peers.

    another worker -> KvService -> begin -> a request that publishes its pages -> offers -> pulled

A prefill for others is a request like any other, except that it samples nothing and that its full
pages are copied to the host as soon as the step that fills them is enqueued.  Read next:
`transfer/offers.py` for how long they live, `transfer/pull.py` for the other side.
"""

import dataclasses
import functools
import logging
import threading
from typing import Any

from rtp_jax.config import ROLES, EngineConfig
from rtp_jax.delivery.collector import Delta
from rtp_jax.engine.kv_tiers import Below
from rtp_jax.engine.last_chunk import LastChunk
from rtp_jax.engine.requests import Prompt, check_salt
from rtp_jax.engine.submission import Submission
from rtp_jax.errors import FailedPrecondition, InvalidArgument, Unavailable
from rtp_jax.late_imports import late
from rtp_jax.metrics import Metrics
from rtp_jax.page_record import PageRecord
from rtp_jax.request import Publication
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.transfer.direct_choice import Direct
from rtp_jax.transfer.offers import Offer, Offers, PrefillAsk

logger = logging.getLogger(__name__)
# And grpc, which an engine that asks nobody does not need.
access = late("rtp_jax.transfer.access")
NOTHING_SAMPLED = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, ignore_eos=True)
RETRY_AFTER_S = 0.5


def exchanges_pages(config: EngineConfig) -> bool:
    """Say whether an engine is to give pages to others and to take theirs."""
    return config.transfer.role is not None and config.cache.enable_prefix_caching


class Transfer:
    """One engine among others; every method may be called from any thread."""

    def __init__(
        self,
        config: EngineConfig,
        below: Below,
        epoch: str,
        submission: Submission,
        metrics: Metrics,
        direct: Direct | None,
    ):
        """Offer nothing yet.

        Args:
          config: of the engine.
          below: says what its pages are, and predicts what they cost.
          epoch: of its life.
          submission: takes the requests that compute pages for others.
          metrics: what is counted.
          direct: how bytes of pages may travel beside messages.

        Raises:
          InvalidArgument: a file of the config cannot be used.
        """
        self.layout, self.direct = below.layout, direct
        self.exchanges_pages = exchanges_pages(config)
        self._config, self._lock = config.transfer, threading.Lock()
        self._last_chunk = LastChunk(
            longest=config.scheduler.longest_chunk,
            page_size=self.layout.page_size,
            page_bytes=self.layout.page_bytes,
            prefill_s=below.prefill_s,
        )
        self.offers = Offers(
            epoch=epoch,
            lease_s=self._config.transfer_lease_s,
            max_bytes=self._config.transfer_bytes,
            on_end=self._unwanted,
            on_arrival=self._last_chunk.travelled,
        )
        self._peers: Any = None  # a `Peers`, made when somebody is asked for the first time
        if self._config.transfer_token_file or self._config.transfer_tls_ca:
            self.peers()  # which reads these files
        self._submission, self._metrics = submission, metrics
        metrics.refresh = self.show_counts
        self._role = self._config.role or "both"

    @property
    def role(self) -> str:
        """What this engine does at present: one of `ROLES`."""
        return self._role

    @property
    def retires(self) -> str | None:
        """Why this process should drain and end; None: it need not."""
        return None if self.direct is None else self.direct.taking.retires

    def set_role(self, role: str) -> str:
        """Take another role from now on, and return the one before; what runs goes on.

        Raises:
          InvalidArgument: there is no such role.
        """
        if role not in ROLES:
            raise InvalidArgument(
                f"RTPJ-4311 ROLE_INVALID: role={role[:80]!r} is not one of {', '.join(ROLES)}.",
                field="role",
            )
        with self._lock:
            before, self._role = self._role, role
        return before

    def check_generates(self) -> None:
        """Refuse to generate where only pages are computed.

        Raises:
          Unavailable: the role is prefill.
        """
        if self._role == "prefill":
            raise _other_role("generates nothing", "Send the request to a worker that decodes.")

    def check_prefill_at(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        """Accept the prefill workers that a request names.

        Raises:
          InvalidArgument: see `transfer/access.py`.
          FailedPrecondition: this engine takes no pages of others.
        """
        if addresses:
            self._check_moves("prefill_at")
            return access.check_addresses(addresses, self._config.transfer_peers)
        return ()

    def peers(self) -> Any:
        """Return the `Peers` that this engine may ask."""
        with self._lock:
            if self._peers is None:
                config = self._config
                self._peers = access.peers_of(
                    self.layout,
                    config.transfer_token_file,
                    config.transfer_tls_ca,
                    self.offers.epoch,
                    None if self.direct is None else self.direct.taking,
                )
            return self._peers

    def begin(self, ask: PrefillAsk) -> Offer:
        """Admit a prefill for another worker; its pages appear in the offer.

        Raises:
          Unavailable: the role is decode, or the engine drains.
          FailedPrecondition: this engine gives no pages to others.
          ResourceExhausted: the queue or the budget for offers is full.
          InvalidArgument: the prompt could never be served.
        """
        if self._role == "decode":
            raise _other_role("computes no pages for others", "Ask a prefill worker.")
        self._check_moves("role")
        num_pages = len(ask.token_ids) // self.layout.page_size
        offer = self.offers.open(
            ask.request_id,
            first_page=ask.first_page,
            num_pages=num_pages,
            page_bytes=self.layout.page_bytes,
            deadline_s=ask.deadline_s,
        )
        try:
            # Full pages before the last token are computed, so there is one token more.
            ids = (*ask.token_ids, ask.token_ids[-1])
            request = self._submission.builder.build(
                Prompt(None, ids, check_salt(ask.cache_salt)),
                NOTHING_SAMPLED,
                request_id=_request_id(offer),
                priority=ask.priority,
                deadline_s=ask.deadline_s,
            )
            sink = functools.partial(self._take, offer)
            publication = Publication(ask.first_page, sink, self._last_chunk.tokens())
            request = dataclasses.replace(request, publication=publication)
            self._submission.submit(request, _End(self.offers, offer))
        except BaseException:
            self.offers.fail(offer, "It was refused.")
            self.offers.release(offer.id, self.offers.epoch)
            raise
        return offer

    def pulled(self, pulled: Any) -> None:
        """Count what came from others: a `transfer.pull.Pulled`."""
        metrics = self._metrics
        with self._lock:
            metrics.peer_pulls += 1
            metrics.peer_pulls_short += not pulled.whole
            metrics.peer_pages += pulled.num_pages
            metrics.peer_bytes += pulled.num_bytes
            metrics.peer_pages_corrupt += pulled.num_corrupt
            metrics.direct_pages += pulled.num_direct
        for failure in pulled.failures:
            logger.info("no pages from %s", failure)

    def show_counts(self) -> None:
        """Copy what was counted to the metrics; after a step, and when somebody scrapes."""
        counts, metrics = self.offers.counts, self._metrics
        metrics.offers_opened, metrics.offers_expired = counts.opened, counts.expired
        metrics.offered_pages = counts.published
        if self.direct is not None:
            given, taken = self.direct.giving.counts, self.direct.taking.counts
            metrics.direct_given, metrics.direct_unfetched = given.given, given.unfetched
            metrics.direct_waiting_bytes, metrics.direct_refused = given.bytes, given.refused
            metrics.direct_failed = taken.failed
            metrics.direct_stuck, metrics.direct_stuck_bytes = taken.stuck, taken.stuck_bytes

    def close(self) -> None:
        """End offers and connections."""
        self.offers.close()
        with self._lock:
            if self._peers is not None:
                self._peers.close()
        if self.direct is not None:
            self.direct.close()

    def _check_moves(self, field: str) -> None:
        if self.exchanges_pages:
            return
        raise FailedPrecondition(
            "RTPJ-4312 PAGES_STAY_HERE: this engine exchanges no KV pages: that needs a role, here"
            f" {self._config.role}, and enable_prefix_caching, which gives pages their identities."
            " Start it with --role both, prefill or decode, or leave prefill_at out.",
            field=field,
        )

    def _take(self, offer: Offer, at: int, record: PageRecord | None) -> None:
        """Publish a page that was copied, on the thread that waits for copies."""
        if record is None:
            self.offers.fail(offer, "The step that computed it failed.")
        else:
            self.offers.publish(offer, at, record)

    def _unwanted(self, offer: Offer) -> None:
        """End the prefill of an offer that ended first."""
        self._submission.abort(_request_id(offer))


class _End:
    """Reads how a prefill ends; its pages go another way."""

    def __init__(self, offers: Offers, offer: Offer):
        self._offers, self._offer = offers, offer

    def put(self, delta: Delta) -> None:
        """Take the end of the request, from the delivery thread."""
        if delta.error is not None:
            self._offers.fail(self._offer, f"{delta.error}")
        elif delta.finish_reason == "abort":
            self._offers.fail(self._offer, "It was aborted.")

    def flush(self) -> None:
        """Nothing to do: nobody waits."""


def _request_id(offer: Offer) -> str:
    return f"prefill-{offer.id}"


def _other_role(what: str, fix: str) -> Unavailable:
    return Unavailable(
        f"RTPJ-4313 ROLE_REFUSES: this worker {what} in its role. {fix}",
        retry_after_s=RETRY_AFTER_S,
    )
