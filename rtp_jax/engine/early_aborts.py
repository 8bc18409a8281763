"""Which requests were aborted before they came?  An abort may overtake its request."""

import time

REMEMBER_S = 30.0
MAX_REMEMBERED = 10_000


class EarlyAborts:
    """Ids of requests that are not here yet and are not wanted; the caller keeps threads apart."""

    def __init__(self):
        self._until_s: dict[str, float] = {}  # by id: when to forget it; oldest first

    def add(self, request_id: str) -> None:
        """Remember an id for a while, or not at all if there are too many."""
        now_s = time.monotonic()
        while self._until_s and next(iter(self._until_s.values())) < now_s:
            del self._until_s[next(iter(self._until_s))]
        if len(self._until_s) < MAX_REMEMBERED:
            self._until_s.pop(request_id, None)
            self._until_s[request_id] = now_s + REMEMBER_S

    def take(self, request_id: str) -> bool:
        """Say whether a request that comes now was aborted before; once."""
        return self._until_s.pop(request_id, 0.0) > time.monotonic()
