"""The fake engine behind the synchronous API, for tests of the command line."""

import asyncio

from rtp_jax.errors import NotFound
from tests.serving.fake_engine import FakeEngine


class SyncFakeEngine(FakeEngine):
    """Streams like `Engine.stream`; a prompt `interrupted` raises KeyboardInterrupt."""

    def built(self, model: str, *, progress, metrics=None, **options):
        """Stand in for the constructor."""
        if model == "no-model":
            raise NotFound("RTPJ-3031 MODEL_NOT_FOUND: no-model. Download it.")
        progress("loading nothing")
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def stream(self, prompt, params):
        """Yield outputs, one by one."""
        text = prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)
        params = type(params)(
            **{"max_tokens": params.max_tokens, "output_kind": "delta", "stop": params.stop}
        )
        outputs = self.stream_async(prompt, params)
        loop = asyncio.new_event_loop()
        try:
            while (output := loop.run_until_complete(anext(outputs, None))) is not None:
                yield output
                if text == "interrupted":
                    raise KeyboardInterrupt
        finally:
            loop.run_until_complete(outputs.aclose())
            loop.close()
