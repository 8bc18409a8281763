"""What is a server, to a benchmark?  Something that streams: the same for gRPC and for HTTP.

`grpc_target.py` and `http_target.py` are the two there are.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rtp_jax.benchmark.options import refused
from rtp_jax.benchmark.workload import Planned
from rtp_jax.errors import InvalidArgument, Unavailable

SCHEMES = ("grpc", "grpcs", "http", "https")


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a server is, and how it knows us."""

    scheme: str
    rest: str  # host:port, and for HTTP perhaps a path
    token: str | None = None  # sent as a bearer token
    ca: bytes | None = None  # PEM of who signed the server's name; None: the usual authorities

    @property
    def url(self) -> str:
        """How it was written."""
        return f"{self.scheme}://{self.rest}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """What is the same in all requests of a run."""

    model: str = ""  # "": what the server serves
    temperature: float = 0.0
    ignore_eos: bool = True
    timeout_s: float = 600.0
    extra_body: Mapping[str, object] = field(default_factory=dict)  # of HTTP requests


@dataclass(frozen=True, slots=True)
class Served:
    """What a server says about itself."""

    model: str
    vocab_size: int | None = None  # None: it does not say
    about: Mapping[str, object] = field(default_factory=dict)  # for the record


@dataclass(frozen=True, slots=True)
class Message:
    """What came over the wire at one moment."""

    num_tokens: int | None  # generated tokens in it; None: some, and the server does not say
    num_prompt_tokens: int | None = None  # usage, where a message has it
    num_output_tokens: int | None = None
    num_cached_tokens: int | None = None


class RequestFailed(Exception):
    """One request failed; the message is the type of failure, short enough to count by."""


class Target(Protocol):
    """A server."""

    async def describe(self) -> Served:
        """Ask what it serves; raises RtpError if it cannot be asked."""
        ...

    def stream(self, request: Planned, asking: Asking) -> AsyncIterator[Message]:
        """Send a request and yield its messages; raises RequestFailed."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


def parse_address(text: str, *, token: str | None, ca: str | None) -> Address:
    """Read `grpc://host:port`, `http://host:port` or either with TLS: `grpcs`, `https`.

    Raises:
      InvalidArgument: it is none of these, or the file of `ca` cannot be read.
    """
    scheme, found, rest = text.partition("://")
    if not found or scheme not in SCHEMES or not rest.strip("/"):
        allowed = "grpc://HOST:PORT, grpcs://HOST:PORT, http://HOST:PORT or https://HOST:PORT"
        raise refused("--target", text, allowed)
    try:
        pem = None if ca is None else Path(ca).read_bytes()
    except OSError as error:
        raise refused("--tls-ca", ca, f"a PEM file that can be read ({error.strerror})") from error
    return Address(scheme=scheme, rest=rest.rstrip("/"), token=token, ca=pem)


def unreachable(address: Address, reason: str) -> Unavailable:
    """Build the error for a server that cannot be asked what it serves."""
    return Unavailable(
        f"RTPJ-5504 TARGET_UNREACHABLE: {address.url} cannot be asked which model it serves:"
        f" {reason}. Check the address and that a server is ready there, with TLS on both sides or"
        " on none."
    )


def vocabulary_unknown(url: str) -> InvalidArgument:
    """Build the error for a server whose token ids cannot be made up."""
    return InvalidArgument(
        f"RTPJ-5505 VOCABULARY_UNKNOWN: {url} does not say how many token ids its model has, and"
        " prompts are made of them. Give --vocab-size N, or --tokenizer FOLDER.",
        field="vocab_size",
    )
