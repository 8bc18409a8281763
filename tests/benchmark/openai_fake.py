"""A small OpenAI-compatible server, to be asked as a benchmark asks: completions as events.

It answers with a letter for each token, `pause_s` apart.  What it leaves out or gets wrong is set
on the object by the test.
"""

import asyncio
import json
import threading

from aiohttp import web


class OpenAiFake:
    """Runs in a thread until `stop`."""

    def __init__(self):
        self.seen: list[dict] = []  # bodies of the requests
        self.headers: list[dict] = []
        self.card: dict = {"id": "letters", "vocab_size": 100}
        self.joined = 1  # tokens in a message
        self.with_ids = False
        self.with_running_usage = False
        self.pause_s = 0.0
        self.refuse: tuple[int, dict] | None = None  # status and body
        self.break_after: int | None = None  # messages, then the connection ends
        self.error_after: int | None = None  # messages, then an event says what went wrong
        self.num_live = self.most_live = 0
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._runner, port = self._call(self._start())
        self.url = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        """End the server and its thread."""
        self._call(self._runner.cleanup())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        self.loop.close()

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    async def _start(self):
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._completions)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self.card]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        self.headers.append(dict(request.headers))
        if self.refuse is not None:
            return web.json_response(self.refuse[1], status=self.refuse[0])
        self.num_live += 1
        self.most_live = max(self.most_live, self.num_live)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            await self._stream(response, body)
        finally:
            self.num_live -= 1
        return response

    async def _stream(self, response: web.StreamResponse, body: dict) -> None:
        total, sent, messages = body["max_tokens"], 0, 0
        while sent < total:
            await asyncio.sleep(self.pause_s)
            if messages == self.break_after:
                return
            if messages == self.error_after:
                await self._event(response, {"error": {"message": "lost", "code": 500}})
                return
            count = min(self.joined, total - sent)
            sent, messages = sent + count, messages + 1
            choice = {"index": 0, "text": "x" * count, "finish_reason": None}
            choice |= {"token_ids": [7] * count} if self.with_ids else {}
            choice |= {"finish_reason": "length"} if sent == total else {}
            event = {"choices": [choice]}
            if self.with_running_usage:
                event["usage"] = {"completion_tokens": sent}
            await self._event(response, event)
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": total}
        usage["prompt_tokens_details"] = {"cached_tokens": 2}
        await self._event(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")

    async def _event(self, response: web.StreamResponse, event: dict) -> None:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
