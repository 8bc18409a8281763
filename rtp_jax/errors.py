"""What a user can cause and repair: every error of rtp_jax, with a stable id.

A message reads `RTPJ-2101 REQUEST_TOO_LARGE: what was asked, what is true, what to change`.  The
class says which kind of failure it is, so that a door can answer with its own code; the id says
exactly which one, and has an entry in `docs/errors.md`.
"""

import enum
from typing import ClassVar


class Kind(enum.StrEnum):
    """What a caller may do about an error; the gRPC door has a status code for each."""

    INVALID_ARGUMENT = "invalid_argument"
    NOT_FOUND = "not_found"
    FAILED_PRECONDITION = "failed_precondition"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    UNAVAILABLE = "unavailable"
    ALREADY_EXISTS = "already_exists"
    UNAUTHENTICATED = "unauthenticated"
    PERMISSION_DENIED = "permission_denied"
    INTERNAL = "internal"
    UNIMPLEMENTED = "unimplemented"


class RtpError(Exception):
    """An error with a stable id, which a user can read and act upon."""

    kind: ClassVar[Kind] = Kind.INTERNAL
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, field: str = "", retry_after_s: float | None = None):
        super().__init__(message)
        self.field = field  # the option or message field that is at fault, if there is one
        self.retry_after_s = retry_after_s

    @property
    def id(self) -> str:
        """The stable id, for example `RTPJ-2101`."""
        return str(self).split(" ", 1)[0]

    @property
    def name(self) -> str:
        """The id in words, for example `REQUEST_TOO_LARGE`."""
        return str(self).split(" ", 2)[1].rstrip(":")


class InvalidArgument(RtpError, ValueError):
    """An option, prompt, file or field that can never work as given."""

    kind = Kind.INVALID_ARGUMENT


class NotFound(RtpError, LookupError):
    """A model, adapter or request that is not here."""

    kind = Kind.NOT_FOUND


class FailedPrecondition(RtpError):
    """A valid request that the state of this engine forbids."""

    kind = Kind.FAILED_PRECONDITION


class ResourceExhausted(RtpError):
    """No room now; the same request may succeed later."""

    kind = Kind.RESOURCE_EXHAUSTED
    retryable = True


class DeadlineExceeded(RtpError, TimeoutError):
    """The deadline passed, in the queue or while running."""

    kind = Kind.DEADLINE_EXCEEDED


class Cancelled(RtpError):
    """The caller, or somebody in their name, gave up the request."""

    kind = Kind.CANCELLED


class Unavailable(RtpError):
    """Warming, draining or restarting: the same request may succeed elsewhere."""

    kind = Kind.UNAVAILABLE
    retryable = True


class AlreadyExists(RtpError):
    """A live request has this id."""

    kind = Kind.ALREADY_EXISTS


class Unauthenticated(RtpError):
    """No token, or a wrong one."""

    kind = Kind.UNAUTHENTICATED


class PermissionDenied(RtpError):
    """A known caller without the right."""

    kind = Kind.PERMISSION_DENIED


class Internal(RtpError):
    """A fault of ours while processing one request; the engine goes on."""

    kind = Kind.INTERNAL


class Unimplemented(RtpError, NotImplementedError):
    """Something that this build does not do, refused by name."""

    kind = Kind.UNIMPLEMENTED


class CheckpointError(InvalidArgument):
    """A checkpoint, config or tokenizer file that cannot be loaded; names file and tensor."""


class KernelError(InvalidArgument):
    """An implementation that was asked for by name and cannot serve, with its obstacle."""
