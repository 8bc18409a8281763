"""What a client has of an answer, so that another server can go on with it.

A client with several targets, routers side by side, loses a stream with one of them and takes it up
at the next: under the same id, with the tokens that it has.  Both clients do it with this.
"""

import time
import uuid
from collections.abc import Sequence

from rtp_jax.errors import AlreadyExists, Cancelled, InvalidArgument, RtpError, Unavailable
from rtp_jax.wire import generation_pb2 as pb

ROUNDS = 20  # tries of each target in a row that bring no token
PAUSE_S = 0.1  # between two of them


def parsed_targets(address: str | Sequence[str]) -> tuple[str, ...]:
    """Accept one address, or several that serve the same."""
    targets = (address,) if isinstance(address, str) else tuple(address)
    if not targets:
        raise InvalidArgument(
            "RTPJ-1003 OPTION_INVALID: address names no server. Give HOST:PORT, or several.",
            field="address",
        )
    return targets


class Received:
    """The tokens of one answer as they come, from one server after another."""

    def __init__(self, request: pb.GenerateRequest, num_targets: int):
        """Begin; a request that may move needs an id, under which it is known everywhere."""
        self.request = request
        if num_targets > 1 and not request.request_id:
            request.request_id = uuid.uuid4().hex
        self._tries_left = self._all_tries = ROUNDS * num_targets if num_targets > 1 else 1
        self._until_s = (
            time.monotonic() + request.timeout_s if request.HasField("timeout_s") else None
        )
        self._token_ids = [list(each.ids) for each in request.resume.output] or [
            [] for _ in range(request.sampling.n or 1)
        ]
        self._logprob = [0.0] * len(self._token_ids)  # at servers before this one
        self._logprob_now = [0.0] * len(self._token_ids)
        self._num_prompt_logprobs = self._seen_prompt_logprobs = 0
        self._ended: set[int] = set()
        self._moved = False

    @property
    def timeout_s(self) -> float | None:
        """What is left of the request's time; counted once, however many servers it takes."""
        return None if self._until_s is None else max(self._until_s - time.monotonic(), 0.001)

    def take(self, frame: pb.GenerateFrame) -> pb.GenerateFrame | None:
        """Note what came, and leave out what had come before; None: nothing is new."""
        self._tries_left = self._all_tries
        self._drop_known_prompt_logprobs(frame)
        parts = [part for part in frame.completions if part.index not in self._ended]
        for part in parts:
            self._token_ids[part.index] += part.token_ids
            if part.HasField("cumulative_logprob"):
                self._logprob_now[part.index] = part.cumulative_logprob
                part.cumulative_logprob += self._logprob[part.index]
            if part.finish_reason:
                self._ended.add(part.index)
        if len(parts) == len(frame.completions):
            return frame
        kept = pb.GenerateFrame()
        kept.CopyFrom(frame)
        del kept.completions[:]
        kept.completions.extend(parts)
        return kept if parts or frame.finished else None

    def rest(self, error: RtpError) -> pb.GenerateRequest:
        """Return the request for what is missing, for another server; or raise if that is vain."""
        self._tries_left -= 1
        if self._tries_left <= 0 or not self.may_move(error):
            raise error
        self._moved = True
        request = pb.GenerateRequest()
        request.CopyFrom(self.request)
        del request.resume.output[:]
        for ids in self._token_ids:  # none, too: so it is known to have been elsewhere
            request.resume.output.add(ids=ids)
        if self.timeout_s is not None:
            request.timeout_s = self.timeout_s
        for index, logprob in enumerate(self._logprob_now):
            self._logprob[index] += logprob
        self._logprob_now = [0.0] * len(self._token_ids)
        self._seen_prompt_logprobs = 0
        return request

    def may_move(self, error: RtpError) -> bool:
        """Tell whether another server may answer what this one did not.

        A server that has just taken over may not know yet that the one before is gone.
        """
        moved = self._moved and isinstance(error, AlreadyExists | Cancelled)
        return self._all_tries > 1 and (isinstance(error, Unavailable) or moved)

    def _drop_known_prompt_logprobs(self, frame: pb.GenerateFrame) -> None:
        first = self._seen_prompt_logprobs
        self._seen_prompt_logprobs += len(frame.prompt_logprobs)
        known = min(max(self._num_prompt_logprobs - first, 0), len(frame.prompt_logprobs))
        del frame.prompt_logprobs[:known]
        self._num_prompt_logprobs += len(frame.prompt_logprobs)
