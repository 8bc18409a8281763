"""Pages of another engine as a tier: asked last, and only for requests that name whom to ask.

What a peer "holds" is computed when it is asked, so reading takes as long as a prefill there; it is
chosen because the request says so, not because it is cheaper.  But a hop for a few tokens is not
worth it: they are computed here in the time that asking takes, as far as both are known.
"""

import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from rtp_jax.cache.tiers.tier import Wanted
from rtp_jax.late_imports import late
from rtp_jax.page_record import PageRecord
from rtp_jax.transfer.hop import Hop
from rtp_jax.transfer.stop import Stop

transfer = late("rtp_jax.transfer.pull")  # and grpc
PATIENCE_S = 120.0  # that a request without a deadline waits; a silent peer is left much earlier
RESERVE = 1.5  # of the time that computing takes here: what is kept of a deadline for it


class Asker(Protocol):
    """An engine that asks others."""

    def peers(self) -> Any:
        """Return the `Peers` that it may ask."""
        ...

    def pulled(self, pulled: Any) -> None:
        """Learn what came of asking: a `Pulled`; called on the thread that read."""
        ...


class PeerTier:
    """The prefill workers that requests name."""

    name = "peer"

    def __init__(
        self,
        asker: Callable[[], Asker],
        *,
        page_size: int,
        hop: Hop,
        least_stall_s: float,
        compute_s: Callable[[float], float | None],
    ):
        """Ask peers.

        Args:
          asker: returns in whose name.
          page_size: tokens.
          hop: what asking costs.
          least_stall_s: for which a peer may say nothing, even if computing takes no longer.
          compute_s: predicts the seconds that computing some tokens takes here.
        """
        self._asker, self._page_size = asker, page_size
        self._hop, self._compute_s = hop, compute_s
        self._least_stall_s = least_stall_s

    def holds(self, wanted: Wanted) -> int:
        """Count the pages that are worth asking for."""
        request = wanted.request
        before = wanted.first * self._page_size  # tokens, which the prompt must have
        if not request.prefill_at or before > len(request.prompt_token_ids):
            return 0
        num_tokens = len(wanted) * self._page_size
        worth = self._hop.is_worth_it(num_tokens, self._compute_s(num_tokens))
        return len(wanted) if worth else 0

    def read(self, wanted: Wanted, stop: Stop) -> Iterator[PageRecord]:
        """Yield pages as peers compute them."""
        asker = self._asker()
        peers = asker.peers().at(wanted.request.prefill_at)
        stall_s = self._stall_s(len(wanted))
        pull = transfer.Pull(self._asked(wanted), peers, stop, stall_s=stall_s)
        try:
            yield from pull.records()
        finally:
            if pull.result.offered_s is not None:
                self._hop.observe(pull.result.offered_s)
            asker.pulled(pull.result)

    def reject(self, key: bytes) -> None:
        """Nothing to do: pages are checked before they are handed on."""

    def timeout_s(self, num_pages: int) -> float:
        """Say how long a sequence may wait."""
        return PATIENCE_S

    def checks(self) -> bool:
        """Pages that fail are asked for again before they are handed on."""
        return True

    def compares(self) -> bool:
        """The request has decided."""
        return False

    def _asked(self, wanted: Wanted) -> Any:
        request, size = wanted.request, self._page_size
        unpack = struct.Struct(f"<{size}I").unpack
        known = request.prompt_token_ids[: wanted.first * size]
        parents = (wanted.parent, *wanted.keys)
        pages = [
            transfer.AskedPage(key, parent, packed)
            for key, parent, packed in zip(wanted.keys, parents, wanted.packed, strict=False)
        ]
        return transfer.Ask(
            request_id=request.id,
            token_ids=[*known, *(each for packed in wanted.packed for each in unpack(packed))],
            cache_salt=request.cache_salt,
            first_page=wanted.first,
            pages=pages,
            priority=request.priority,
            deadline_s=self._until_s(wanted),
        )

    def _stall_s(self, num_pages: int) -> float:
        """Say for how long a peer may say nothing: as long as computing here takes."""
        own_s = self._compute_s(num_pages * self._page_size)
        stall_s = transfer.STALL_S if own_s is None else min(own_s, transfer.STALL_S)
        return max(stall_s, self._least_stall_s)

    def _until_s(self, wanted: Wanted) -> float:
        """Say when waiting ends, so that the request can still be served from here."""
        until_s = time.monotonic() + PATIENCE_S
        if wanted.request.deadline_s is None:
            return until_s
        own_s = self._compute_s(len(wanted) * self._page_size) or 0.0
        return min(until_s, wanted.request.deadline_s - RESERVE * own_s)
