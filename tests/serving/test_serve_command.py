"""`rtp-jax serve` on a real model, in its own process: ready, a stream, metrics, drained."""

import signal
import subprocess
import sys

from rtp_jax.sampling_params import SamplingParams
from rtp_jax.serving.client import Client
from tests.engine.workload import SMALL


def test_a_model_is_served_and_drained(tiny_model, program_cache, tmp_path):
    options = {**SMALL, "compile_cache": program_cache, "port": 0, "metrics_port": 0}
    (tmp_path / "serve.yaml").write_text(
        "".join(f"{name}: {value}\n" for name, value in options.items())
    )
    command = [sys.executable, "-m", "rtp_jax.serving.main", "serve", str(tiny_model)]
    command += ["--config", str(tmp_path / "serve.yaml")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as server:
        said = dict.fromkeys(("metrics on ", "listening on ", "serving "), "")
        for line in server.stdout:
            for start in said:
                if line.startswith(start):
                    said[start] = line.removeprefix(start).strip()
            if said["serving "]:
                break
        with Client(said["listening on "]) as client:
            params = SamplingParams(max_tokens=20, ignore_eos=True)
            stream = client.stream("The page pool", params)
            ids = next(stream).outputs[0].token_ids
            server.send_signal(signal.SIGTERM)
            for output in stream:
                ids += output.outputs[0].token_ids
            assert len(ids) == 20
        assert server.wait(30) == 0
        assert "drained" in server.stdout.read()
        log = server.stderr.read()
    assert "length: " in log
    assert "page pool" not in log


def test_metrics_of_a_real_engine(real, real_engine):
    with Client(real.address) as client:
        client.generate([5, 6, 7], SamplingParams(max_tokens=4, ignore_eos=True))
    metrics = real_engine.metrics
    assert metrics.histograms["inter_token_latency_seconds"].counts
    assert metrics.request_success["length"] >= 1
    assert metrics.compile_after_ready == 0
