"""What may each tenant use?  A YAML file, read when a router starts.

    team-a: {weight: 2, max_in_flight: 32}
    team-b: {tokens_per_s: 5000, burst_tokens: 20000}

A tenant that is not listed has weight 1 and no limit.  `router/fair_queue.py` keeps them.
"""

import dataclasses
from pathlib import Path

from rtp_jax.errors import InvalidArgument
from rtp_jax.router.fair_queue import Quota
from rtp_jax.serving.yaml_file import read_yaml

NAMES = tuple(field.name for field in dataclasses.fields(Quota))


def read_quotas(path: Path) -> dict[str, Quota]:
    """Read the quotas of tenants.

    Raises:
      InvalidArgument: the file cannot be read, or has something that is no quota.
    """
    content = read_yaml(path, _bad)
    if not isinstance(content, dict):
        raise _bad(path, f"holds a {content.__class__.__name__}, not tenants and quotas")
    return {str(tenant): _quota(path, str(tenant), given) for tenant, given in content.items()}


def _quota(path: Path, tenant: str, given: object) -> Quota:
    if not isinstance(given, dict):
        raise _bad(path, f"has no names and values for {tenant[:40]!r}")
    for name, value in given.items():
        if name not in NAMES:
            raise _bad(
                path, f"has {str(name)[:40]!r} for {tenant[:40]!r}, which is none of {NAMES}"
            )
        whole = name != "max_in_flight" or isinstance(value, int)
        if isinstance(value, bool) or not isinstance(value, int | float) or not whole:
            raise _bad(path, f"has {name}={str(value)[:40]!r} for {tenant[:40]!r}")
    return Quota(**given)


def _bad(path: Path, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"RTPJ-5608 QUOTAS_FILE_INVALID: {path} {reason}. Write a tenant's name and its"
        f" {', '.join(NAMES)}.",
        field="quotas",
    )
