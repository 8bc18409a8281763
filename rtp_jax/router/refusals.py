"""Why a request gets no worker, in words: with the numbers, and when to come back."""

from rtp_jax.errors import DeadlineExceeded, ResourceExhausted, RtpError, Unavailable
from rtp_jax.router.facts import Ask
from rtp_jax.router.settings import RouterSettings


def too_late(ask: Ask, now_s: float) -> RtpError:
    """Say that a deadline passed while a request waited for a worker."""
    return DeadlineExceeded(
        f"RTPJ-4001 DEADLINE_EXCEEDED: request {ask.request_id} waited"
        f" {now_s - ask.arrival_s:.3f} s for a worker, and its deadline has passed. Allow more"
        " time, or add workers.",
    )


def full(
    num_waiting: int, num_in_flight: int, settings: RouterSettings, retry_s: float
) -> RtpError:
    """Say that too many requests wait already."""
    return ResourceExhausted(
        f"RTPJ-7003 ROUTER_FULL: {num_waiting} requests wait for a worker, more than"
        f" max_waiting={settings.max_waiting} allows, and {num_in_flight} run. Retry after"
        f" {retry_s:.1f} s, add workers, or raise max_waiting.",
        retry_after_s=retry_s,
    )


def no_worker(num_known: int, settings: RouterSettings) -> RtpError:
    """Say that nobody is there to serve a request."""
    return Unavailable(
        f"RTPJ-7004 NO_WORKER: for {settings.no_worker_s:g} s none of {num_known} known workers has"
        " taken requests. Start a worker of role both or decode.",
        retry_after_s=settings.no_worker_s,
    )


def quota_spent(ask: Ask, settings: RouterSettings, over_s: float) -> RtpError:
    """Say that a tenant has used up its rate."""
    quota = settings.quotas[ask.tenant]
    return ResourceExhausted(
        f"RTPJ-7005 QUOTA_SPENT: tenant {ask.tenant!r} has used its {quota.tokens_per_s:g} tokens a"
        f" second. Retry after {over_s:.2f} s, or raise its tokens_per_s.",
        field="tenant",
        retry_after_s=over_s,
    )
