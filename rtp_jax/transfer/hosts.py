"""Where does an address lead, and can one be reached from another?"""

import ipaddress
import socket

ELSEWHERE = {4: "192.0.2.1", 6: "2001:db8::1"}  # of nobody (RFC 5737, RFC 3849)
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def host_of(address: str) -> str:
    """Return the host of HOST:PORT."""
    return address.rpartition(":")[0].strip("[]")


def is_loopback(host: str) -> bool:
    """Tell whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name: somebody else decides where it leads


def can_connect(here: str, there: str) -> bool:
    """Tell whether a socket that is bound to one address can be connected to another one.

    That is: both are numbers of one address each, of the same family, and either both or none of
    them lead to their own machine alone.
    """
    if not (_is_one(here) and _is_one(there)):
        return False
    own, theirs = ipaddress.ip_address(here), ipaddress.ip_address(there)
    return own.version == theirs.version and own.is_loopback == theirs.is_loopback


def address_for_others(host: str) -> str:
    """Return an address that others can be told: for 0.0.0.0 or ::, that of the way to them.

    Raises:
      ValueError: it is not the number of one address that leads to the same machine everywhere.
      OSError: this machine has no way to others.
    """
    address = ipaddress.ip_address(host)
    if _is_one(host):
        return host
    if not address.is_unspecified:
        raise ValueError(f"{host} leads elsewhere on another machine")
    with socket.socket(FAMILIES[address.version], socket.SOCK_DGRAM) as probe:
        probe.connect((ELSEWHERE[address.version], 9))  # sends nothing: the system picks a way
        return str(probe.getsockname()[0])


def _is_one(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_link_local)
