"""The knobs of `rtp-jax route`, beside those of every server (`rtp_jax/config.py`)."""

from dataclasses import dataclass

from rtp_jax.config import knob


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteConfig:
    """What `rtp-jax route` knows of its workers, and how it chooses among them."""

    workers: str | None = knob(None, "workers as HOST:PORT, separated by commas")
    members: str | None = knob(None, "file that lists workers, read again when it changes")
    policy: str = knob(
        "ttft",
        "how workers are chosen: by predicted time to first token, by outstanding tokens, by what"
        " their prefix caches hold, or in turn",
        choices=("ttft", "least_tokens", "affinity", "round_robin"),
    )
    worker_silent_s: float = knob(
        2.5, "a worker that says nothing for so long loses its requests to others", low=0.6
    )
    no_worker_s: float = knob(
        15.0, "how long requests wait while no worker takes any", low=0, high=3600
    )
    max_tries: int = knob(
        10, "workers in a row that a request may lose without a new token", low=1, high=1000
    )
    router_max_waiting: int = knob(1024, "requests that may wait for a worker", low=1)
    session_slack: float = knob(
        0.25,
        "a session stays with its worker while that is predicted to be slower than the best by no"
        " more than this share (0: always the best)",
        low=0,
    )
    quotas: str | None = knob(None, "YAML file of tenants and what they may use")
    worker_token_file: str | None = knob(
        None, "file whose first line is the bearer token for workers"
    )
    worker_tls_ca: str | None = knob(
        None, "PEM file of the CA that signed the workers' certificates; None: no TLS"
    )
