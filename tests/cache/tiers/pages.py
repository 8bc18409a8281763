"""Records, and requests for them, for the tests of tiers."""

from rtp_jax.cache.tiers.tier import Tier, Wanted
from rtp_jax.page_record import PageRecord, record_of
from rtp_jax.request import Request, Reuse
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.transfer.stop import Stop

ROOT = bytes(16)
NEVER = Stop()


def key_of(chain: int, at: int) -> bytes:
    """Name page `at` of a chain; page -1 is the root, which all chains share."""
    return ROOT if at < 0 else bytes([1 + chain]) * 8 + at.to_bytes(8, "little")


def record(chain: int, at: int, num_bytes: int = 100) -> PageRecord:
    """Make a page whose bytes say which one it is."""
    payload = bytes([chain, at % 256]) * (num_bytes // 2)
    return record_of(key_of(chain, at), key_of(chain, at - 1), bytes([chain, at % 256]), payload)


def wanted(chain: int, first: int, stop: int, reuse: Reuse = Reuse()) -> Wanted:
    """Ask for pages first..stop of a chain."""
    request = Request(id="r", prompt_token_ids=(1,), params=SamplingParams(), reuse=reuse)
    keys = tuple(key_of(chain, at) for at in range(first, stop))
    packed = tuple(bytes([chain, at % 256]) for at in range(first, stop))
    return Wanted(request, first, key_of(chain, first - 1), keys, packed)


def read(tier: Tier, ask: Wanted) -> list[PageRecord]:
    """Read all that a tier has, as a fetch would: what is broken ends it."""
    taken = []
    for at, each in enumerate(tier.read(ask, NEVER)):
        if not ask.accepts(at, each):
            tier.reject(ask.keys[at])
            break
        taken.append(each)
    return taken
