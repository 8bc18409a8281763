"""A client of HTTP doors for tests: asks, and reads answers and streams, without an SDK."""

import asyncio
import json
import ssl
from dataclasses import dataclass, field

import aiohttp


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    text: str
    events: list[dict] = field(default_factory=list)  # of a stream, [DONE] not among them

    @property
    def json(self) -> dict:
        """The body."""
        return json.loads(self.text)

    @property
    def error(self) -> dict:
        """What it says about an error."""
        return self.json["error"]


def ask(url: str, body: object = None, *, ca: str | None = None, **options) -> Answer:
    """Get a page or, with a body, post it; a stream is read to its end."""
    return asyncio.run(ask_async(url, body, ca=ca, **options))


async def ask_async(url: str, body: object = None, *, ca: str | None = None, **options) -> Answer:
    """Like `ask`."""
    trusted = ssl.create_default_context(cafile=ca) if ca else True
    if body is not None:
        options |= {"data": body} if isinstance(body, bytes) else {"json": body}
    method = options.pop("method", "GET" if body is None else "POST")
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, ssl=trusted, **options) as response,
    ):
        text = await response.text()
        answer = Answer(response.status, dict(response.headers), text)
    if answer.headers.get("Content-Type") == "text/event-stream":
        answer.events = read_events(text)
    return answer


def read_events(text: str) -> list[dict]:
    """Read the events of a stream that has ended as it should."""
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(each.removeprefix("data: ")) for each in events]


def said(events: list[dict], index: int = 0) -> str:
    """Put the text of one choice together."""
    parts = [c for event in events for c in event.get("choices", ()) if c["index"] == index]
    return "".join(c["text"] if "text" in c else c["delta"]["content"] for c in parts)
