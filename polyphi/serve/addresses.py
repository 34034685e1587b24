"""Addresses that requests name: which parts they have, and whether they lead outside."""

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import quote

LONGEST = 4096
"""Characters of an address that is no data URL."""
PORTS = {"http": 80, "https": 443}

# Beside what Python's `is_global` knows (3.11 misses some of RFC 6890's later entries): protocol assignments,
# 6to4 relays, and the address at which Azure's hosts answer their guests.
NOT_PUBLIC = tuple(
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "2001::/23"))
)
# Of IPv6 only ordinary addresses. What carries an IPv4 address inside (mapped, NAT64, 6to4) is none.
ORDINARY = ipaddress.ip_network("2000::/3")
CARRIERS = tuple(map(ipaddress.ip_network, ("2002::/16", "3fff::/20")))


class WrongAddress(ValueError):
    """An address that its sender may be told about: nothing was looked up for it."""


@dataclass(frozen=True)
class Address:
    """An http(s) address, taken apart and judged by its spelling. `target`: path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def written(self) -> str:
        """Host and port as a Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def parse(url: str) -> Address:
    """An http(s) address in plain spelling. Raises ValueError, in words for whoever sent it, for all that two readers
    might read differently: user names, backslashes, blanks, control and invisible characters, hosts that aren't ASCII
    names of two labels or more (numbers in other than the usual form, trailing dots)."""
    if len(url) > LONGEST:
        raise WrongAddress(f"an address may have {LONGEST} characters, found {len(url)}")
    if not url.isprintable() or " " in url or "\\" in url:
        raise WrongAddress("an address has no blanks, backslashes or control characters")
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme not in PORTS:
        raise WrongAddress("expected an address that begins with http:// or https://")
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    place, target = rest[:end], rest[end:].partition("#")[0]
    if "@" in place:
        raise WrongAddress("an address may hold no user name or password")
    if not place.isascii():  # before it is lowered: there is a K that becomes an ASCII one
        raise WrongAddress("the host of an address is a name like media.example.org, in ASCII")
    host, port = place.lower(), str(PORTS[scheme])
    if not host.endswith("]") and ":" in host:
        host, _, port = host.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 1 << 16):
        raise WrongAddress("the port of an address is a number from 1 to 65535")
    if host.startswith("[") and host.endswith("]") and ":" in host:
        host = host[1:-1]
        named = "%" not in host and _as_ip(host) is not None
    else:
        named = _is_name(host) or (":" not in host and _as_ip(host) is not None)
    if not named:
        raise WrongAddress("the host of an address is a name like media.example.org, in ASCII")
    if not target.startswith("/"):
        target = "/" + target
    return Address(scheme, host, int(port), quote(target, safe="!$%&'()*+,-./:;=?@_~[]|^`{}\"<>"))


def _is_name(host: str) -> bool:
    """Whether it's a host name of at least two labels, the last of which is no number in any base."""
    labels = host.split(".")
    letters = set("abcdefghijklmnopqrstuvwxyz0123456789-_")
    plain = all(
        0 < len(label) < 64 and letters.issuperset(label) and label[0] != "-" and label[-1] != "-"
        for label in labels
    )
    return plain and len(labels) > 1 and len(host) < 254 and not labels[-1][0].isdigit()


def _as_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Only the usual form is one: four decimal numbers without leading zeros, or IPv6."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_public(address: str) -> bool:
    """Whether an address belongs to the open internet, and to nothing that could lead back inside."""
    found = _as_ip(address)
    if found is None or found.is_multicast or not found.is_global:
        return False
    if any(found in network for network in (*NOT_PUBLIC, *CARRIERS)):
        return False
    if isinstance(found, ipaddress.IPv6Address):
        return found.scope_id is None and found in ORDINARY
    return True


def look_up(host: str, port: int) -> list[str]:
    """A host's addresses, as the system tells them."""
    kind, flags = socket.SOCK_STREAM, socket.AI_ADDRCONFIG
    found = socket.getaddrinfo(host, port, type=kind, flags=flags)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
