"""An OpenAI-compatible server, as a benchmark sees it: `POST /v1/completions`, streamed.

Prompts go as token ids, which vLLM, SGLang, llama.cpp and others take as well.  `ignore_eos` is the
one field beyond the standard that is sent, and only where output lengths are to be exact.
"""

import json
import re
import ssl
from collections.abc import AsyncIterator
from typing import Any

from rtp_jax.benchmark.targets import Address, Asking, Message, RequestFailed, Served, unreachable
from rtp_jax.benchmark.workload import Planned
from rtp_jax.errors import FailedPrecondition

DESCRIBE_TIMEOUT_S = 10.0
MAX_LINE_BYTES = 8 << 20
DATA, DONE = b"data:", b"[DONE]"
OUR_ERROR = re.compile(r"RTPJ-\d{4} [A-Z0-9_]+")


class HttpTarget:
    """A session with one server; as many connections as there are streams."""

    def __init__(self, address: Address):
        """Prepare the session; call it where the loop runs.

        Raises:
          FailedPrecondition: aiohttp is not installed.
        """
        self._aiohttp = http_library()
        self._address = address
        root = address.url
        self._root = root if root.endswith("/v1") else f"{root}/v1"
        secure = ssl.create_default_context(cadata=address.ca.decode()) if address.ca else True
        token = address.token
        self._session = self._aiohttp.ClientSession(
            connector=self._aiohttp.TCPConnector(limit=0, ssl=secure),
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=self._aiohttp.ClientTimeout(total=None),
            read_bufsize=MAX_LINE_BYTES,
        )

    async def describe(self) -> Served:
        """Ask which models it has; the first one counts."""
        timeout = self._aiohttp.ClientTimeout(total=DESCRIBE_TIMEOUT_S)
        try:
            async with self._session.get(f"{self._root}/models", timeout=timeout) as answer:
                if answer.status != 200:
                    failure = failure_of(answer.status, await answer.text())
                    raise unreachable(self._address, f"/v1/models: {failure}")
                card = (await answer.json(content_type=None))["data"][0]
                named = str(card["id"])
        except (self._aiohttp.ClientError, TimeoutError) as error:
            raise unreachable(self._address, str(error) or "no answer in time") from error
        except (ValueError, LookupError, TypeError) as error:
            raise unreachable(self._address, "/v1/models answers no list of models") from error
        server = answer.headers.get("Server", "unknown")
        return Served(
            named, _vocab_size(card), {"server": server, "owned_by": card.get("owned_by")}
        )

    async def stream(self, request: Planned, asking: Asking) -> AsyncIterator[Message]:
        """Send a request and yield what each event brings."""
        finished = False
        timeout = self._aiohttp.ClientTimeout(total=asking.timeout_s)
        url, body = f"{self._root}/completions", request_body(request, asking)
        try:
            async with self._session.post(url, json=body, timeout=timeout) as answer:
                if answer.status != 200:
                    raise RequestFailed(failure_of(answer.status, await answer.text()))
                async for line in answer.content:
                    event = event_of(line)
                    if event is not None:
                        finished |= any(each.get("finish_reason") for each in _choices(event))
                        yield message_of(event)
        except TimeoutError as error:
            raise RequestFailed("timeout") from error
        except self._aiohttp.ClientError as error:
            raise RequestFailed(f"HTTP {error.__class__.__name__}") from error
        except ValueError as error:
            raise RequestFailed("HTTP answer is no stream of events") from error
        if not finished:
            raise RequestFailed("stream cut short")

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


def http_library() -> Any:
    """Import aiohttp, which an extra installs."""
    try:
        import aiohttp
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            "RTPJ-5506 AIOHTTP_ABSENT: an http:// target is driven with aiohttp, which is not"
            " installed. pip install 'rtp_jax[http]', or use a grpc:// target."
        ) from error
    return aiohttp


def request_body(request: Planned, asking: Asking) -> dict[str, object]:
    """Spell a request."""
    prompt = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
    body: dict[str, object] = {
        "model": asking.model,
        "prompt": prompt,
        "max_tokens": request.num_output_tokens,
        "temperature": asking.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if asking.ignore_eos:
        body["ignore_eos"] = True
    return body | dict(asking.extra_body)


def event_of(line: bytes) -> dict | None:
    """Read one line of a stream of events: an event, or None for anything else.

    Raises:
      RequestFailed: the event is an error.
      ValueError: it is not JSON.
    """
    if not line.startswith(DATA) or (data := line[len(DATA) :].strip()) == DONE:
        return None
    event = json.loads(data)
    if not isinstance(event, dict):
        raise ValueError("an event is no object")
    if event.get("error"):
        raise RequestFailed(failure_of(None, json.dumps(event)))
    return event


def message_of(event: dict) -> Message:
    """Count what an event brings: by its token ids or its usage, where a server sends them."""
    usage = event.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    choices = _choices(event)
    ids = [choice["token_ids"] for choice in choices if choice.get("token_ids") is not None]
    num_tokens = 0
    if ids:
        num_tokens = sum(map(len, ids))
    elif any(choice.get("text") for choice in choices):
        num_tokens = None
    return Message(
        num_tokens,
        usage.get("prompt_tokens"),
        usage.get("completion_tokens"),
        details.get("cached_tokens"),
    )


def failure_of(status: int | None, body: str) -> str:
    """Name a failure: our error's id and name, else the status and the type that the body gives."""
    if ours := OUR_ERROR.search(body):
        return ours[0]
    try:
        error = json.loads(body)["error"]
        kind = error.get("code") or error.get("type") or ""
    except (ValueError, LookupError, TypeError, AttributeError):
        kind = ""
    return " ".join(["HTTP", str(status or "event"), str(kind)[:60]]).strip()


def _choices(event: dict) -> list[dict]:
    return event.get("choices") or []


def _vocab_size(card: dict) -> int | None:
    """Find the size of the vocabulary where servers put it: rtp_jax, llama.cpp."""
    for found in (card.get("vocab_size"), (card.get("meta") or {}).get("n_vocab")):
        if isinstance(found, int) and found > 0:
            return found
    return None
