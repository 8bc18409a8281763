"""llama.cpp through its own server, asked over loopback with token ids.

Batches and served requests go to a server with 16 slots of 1024 tokens each; a prompt that needs
more goes to a second one with a single slot, started when first needed.  Tokens are streamed, as
its users see them.
"""

import http.client
import json
import re
import socket
import subprocess
import threading
import time
from pathlib import Path

from bench.peers import figures
from bench.peers.worker import Spec, answer
from bench.peers.workloads import KV_TOKENS, MAX_LEN, SERVED_REQUESTS, SLOTS, Request

FILES = {"bf16": "bf16", "int8": "Q8_0", "int4": "Q4_0", "int4-pure": "Q4_0-pure"}
# A connection keeps its thread for as long as tokens are streamed.  The server makes more threads
# when none is idle, but counts as idle those that were woken and have not begun yet, and the
# connection then waits for a whole answer of another one.
HTTP_THREADS = SERVED_REQUESTS + 8
SETTINGS = ["-b", "2048", "-ub", "512", "-ctk", "f16", "-ctv", "f16", "-fa", "on"]


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One llama-server."""

    def __init__(self, spec: Spec, slots: int, context: int):
        """Start it and wait until it is healthy."""
        build = Path(spec.scratch) / "llama.cpp" / "bin" / "llama-server"
        file = Path(spec.scratch) / "models" / f"{spec.model}-{FILES[spec.precision]}.gguf"
        threads = str(spec.threads)
        self._port = free_port()
        words = [str(build), "-m", str(file), "-t", threads, "-tb", threads, *SETTINGS]
        words += ["-np", str(slots), "-c", str(slots * context), "--no-kv-unified"]
        words += ["--host", "127.0.0.1", "--port", str(self._port)]
        words += ["--threads-http", str(HTTP_THREADS)]
        words += ["--cache-ram", "0", "--no-warmup", "--log-disable"]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        while not self._healthy():
            if self._process.poll() is not None:
                raise RuntimeError(f"llama-server ended with status {self._process.returncode}")
            time.sleep(0.01)

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=3600)

    def _healthy(self) -> bool:
        connection = self._connect()
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def ask(self, prompt: list[int], num_new: int, *, times: list[float] | None = None) -> dict:
        """Complete one prompt; with `times`, streamed, and the time of each token is added."""
        body = {
            "prompt": prompt,
            "n_predict": num_new,
            "temperature": 0.0,
            "samplers": ["temperature"],
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": times is not None,
        }
        connection = self._connect()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/completion", json.dumps(body), headers)
        response = connection.getresponse()
        if times is None:
            reply = json.loads(response.read())
        else:
            reply = {}
            for line in response:
                if line.startswith(b"data: "):
                    reply = json.loads(line[6:])
                    times += [time.perf_counter()] * len(reply.get("tokens") or [])
        connection.close()
        if response.status != 200:
            raise RuntimeError(f"llama-server answered {response.status}: {reply}")
        return reply

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


class LlamaCpp:
    """Up to two servers of one file."""

    def __init__(self, spec: Spec):
        """Start the server for batches."""
        self._spec = spec
        self._context = KV_TOKENS // SLOTS
        self._batch = Server(spec, SLOTS, self._context)
        self._long: Server | None = None

    def versions(self) -> dict[str, str]:
        """Ask the binary."""
        build = Path(self._spec.scratch) / "llama.cpp" / "bin" / "llama-server"
        said = subprocess.run([str(build), "--version"], capture_output=True, text=True)
        found = re.search(r"version:\s*(.*)", said.stdout + said.stderr)
        return {
            "llama.cpp": found.group(1) if found else "unknown",
            "settings": " ".join(SETTINGS),
            "file": FILES[self._spec.precision],
        }

    def _server(self, num_tokens: int) -> Server:
        if num_tokens <= self._context:
            return self._batch
        if self._long is None:
            self._long = Server(self._spec, 1, MAX_LEN)
        return self._long

    def prefill(self, prompt: list[int]) -> float:
        """Time a request for one token."""
        server = self._server(len(prompt) + 1)
        began = time.perf_counter()
        server.ask(prompt, 1)
        return time.perf_counter() - began

    def decode(self, prompts: list[list[int]], num_new: int) -> tuple[int, float]:
        """Stream all at once and count while all of them decode."""
        return figures.steady(self.serve([Request(prompt, num_new, 0.0) for prompt in prompts]))

    def serve(self, requests: list[Request]) -> list[list[float]]:
        """One streaming client for each request."""
        times: list[list[float]] = [[] for _ in requests]
        began = time.perf_counter()

        def one(number: int, request: Request) -> None:
            time.sleep(max(0.0, began + request.arrival_s - time.perf_counter()))
            self._batch.ask(request.prompt, request.max_tokens, times=times[number])

        clients = [threading.Thread(target=one, args=pair) for pair in enumerate(requests)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        return [[moment - began for moment in stream] for stream in times]

    def close(self) -> None:
        """End the servers."""
        for server in (self._batch, self._long):
            if server is not None:
                server.close()


if __name__ == "__main__":
    answer(LlamaCpp)
