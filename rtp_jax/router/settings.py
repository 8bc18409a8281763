"""What an operator may say about how the router decides."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rtp_jax.errors import InvalidArgument
from rtp_jax.router.fair_queue import Quota
from rtp_jax.router.policies import POLICIES, TtftSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """How the router decides."""

    policy: str = "ttft"  # one of POLICIES
    ttft: TtftSettings = field(default_factory=TtftSettings)
    max_waiting: int = 1024  # requests in the router; more are refused
    max_worker_wait_s: float = 2.0  # a request stays here while it would wait longer at a worker
    max_known_pages: int = 4_000_000
    quotas: Mapping[str, Quota] = field(default_factory=dict)  # by tenant; others have none
    session_slack: float = 0.25  # a session's worker may be predicted so much slower than the best
    max_sessions: int = 100_000  # remembered
    stale_s: float = 3.0  # a worker that has said nothing for so long is used only if it must be
    no_worker_s: float = 5.0  # requests wait so long for a worker to come

    def __post_init__(self):
        if self.policy not in POLICIES:
            raise InvalidArgument(
                f"RTPJ-7001 POLICY_UNKNOWN: policy={self.policy!r} is not one of"
                f" {', '.join(sorted(POLICIES))}. Choose one of them.",
                field="policy",
            )
        numbers = ("max_waiting", "max_known_pages", "max_sessions")
        times = ("max_worker_wait_s", "session_slack", "stale_s", "no_worker_s")
        values: list[tuple[str, float, float]] = [
            (name, getattr(self, name), 1) for name in numbers
        ]
        values += [(name, getattr(self, name), 0) for name in times]
        for tenant, quota in self.quotas.items():
            values.append((f"quotas[{tenant!r}].weight", quota.weight, 1e-6))
            values.append((f"quotas[{tenant!r}].burst_tokens", quota.burst_tokens, 0))
            if quota.max_in_flight is not None:
                values.append((f"quotas[{tenant!r}].max_in_flight", quota.max_in_flight, 1))
            if quota.tokens_per_s is not None:
                values.append((f"quotas[{tenant!r}].tokens_per_s", quota.tokens_per_s, 1e-6))
        for name, value, least in values:
            if not value >= least:
                raise InvalidArgument(
                    f"RTPJ-7002 ROUTER_SETTING_INVALID: {name}={value!r} is less than {least}."
                    f" Use {least} or more.",
                    field=name,
                )
