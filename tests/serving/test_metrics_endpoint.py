"""The HTTP port: metrics, probes, nothing else."""

import http.client
import socket

import pytest

from rtp_jax.errors import FailedPrecondition
from rtp_jax.metrics import Metrics
from rtp_jax.serving.metrics_endpoint import MetricsEndpoint, Probes


@pytest.fixture
def reasons():
    return {"live": "", "ready": ""}


@pytest.fixture
def endpoint(reasons):
    probes = Probes(lambda: reasons["live"], lambda: reasons["ready"])
    serving = MetricsEndpoint("127.0.0.1", 0, Metrics(model_name="m").registry, probes)
    yield serving
    serving.close()


def get(endpoint: MetricsEndpoint, path: str, method: str = "GET") -> tuple[int, str]:
    """Ask for a page."""
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=5)
    connection.request(method, path)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_metrics(endpoint):
    status, text = get(endpoint, "/metrics")
    assert status == 200
    assert 'rtp_jax:num_requests_running{model_name="m"} 0.0' in text
    assert 'vllm:num_requests_running{model_name="m"} 0.0' in text


def test_probes(endpoint, reasons):
    assert get(endpoint, "/livez") == get(endpoint, "/readyz?verbose") == (200, "ok\n")
    reasons |= {"live": "the loop is stuck", "ready": "draining"}
    assert get(endpoint, "/livez") == (503, "the loop is stuck\n")
    assert get(endpoint, "/readyz") == (503, "draining\n")


def test_nothing_else_is_served(endpoint):
    assert get(endpoint, "/../etc/passwd")[0] == 404
    assert get(endpoint, "/")[0] == 404
    assert get(endpoint, "/metrics", "POST")[0] == 501


def test_a_taken_port_is_an_error(endpoint):
    probes = Probes(str, str)
    with pytest.raises(FailedPrecondition, match="RTPJ-5208 METRICS_ADDRESS_UNAVAILABLE"):
        MetricsEndpoint("127.0.0.1", endpoint.port, Metrics().registry, probes)


def test_one_who_says_nothing_stops_nobody(endpoint):
    with socket.create_connection(("127.0.0.1", endpoint.port)):
        assert get(endpoint, "/livez")[0] == 200
