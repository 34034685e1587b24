"""Parse the URLs in requests, and check whether an IP address is on the public internet."""

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import quote

LONGEST = 4096
"""Maximum characters of a URL other than a data URL."""
PORTS = {"http": 80, "https": 443}

# In addition to Python's `is_global` (3.11 lacks some of RFC 6890's later entries): protocol assignments,
# 6to4 relays, and the address at which Azure's hosts serve their virtual machines.
NOT_PUBLIC = tuple(
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "2001::/23"))
)
# IPv6 global unicast. Addresses that embed an IPv4 address (mapped, NAT64, 6to4) are not public.
ORDINARY = ipaddress.ip_network("2000::/3")
CARRIERS = tuple(map(ipaddress.ip_network, ("2002::/16", "3fff::/20")))


class InvalidAddress(ValueError):
    """A malformed or forbidden URL. No host was resolved for it, so the message may be sent to the client."""


@dataclass(frozen=True)
class Address:
    """A parsed http(s) URL. `target`: path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and port in the form of a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse(url: str, *, single_labels: bool = False) -> Address:
    """The parts of an http(s) URL. Raises InvalidAddress, with a message for the client, for everything that two
    parsers might read differently: user names, backslashes, blanks, control and invisible characters, and hosts that
    aren't ASCII names of two labels or more (numbers in unusual forms, trailing dots). `single_labels`: also names of
    one label, such as localhost."""
    if len(url) > LONGEST:
        raise InvalidAddress(
            f"expected an address of at most {LONGEST} characters, found {len(url)}"
        )
    if not url.isprintable() or " " in url or "\\" in url:
        raise InvalidAddress(
            "an address must not contain blanks, backslashes or control characters"
        )
    scheme, _, remainder = url.partition("://")
    scheme = scheme.lower()
    if scheme not in PORTS:
        raise InvalidAddress("expected an address that begins with http:// or https://")
    authority_end = min(
        (index for index in map(remainder.find, "/?#") if index >= 0), default=len(remainder)
    )
    authority, target = remainder[:authority_end], remainder[authority_end:].partition("#")[0]
    if "@" in authority:
        raise InvalidAddress("an address must not contain a user name or password")
    if not authority.isascii():  # before lower(), which maps KELVIN SIGN to ASCII k
        raise InvalidAddress("the host of an address is a name like media.example.org, in ASCII")
    host, port = authority.lower(), str(PORTS[scheme])
    if not host.endswith("]") and ":" in host:
        host, _, port = host.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 1 << 16):
        raise InvalidAddress("the port of an address is a number from 1 to 65535")
    if host.startswith("[") and host.endswith("]") and ":" in host:
        host = host[1:-1]
        valid = "%" not in host and _as_ip(host) is not None
    else:
        valid = _is_name(host, 1 if single_labels else 2)
        valid = valid or (":" not in host and _as_ip(host) is not None)
    if not valid:
        raise InvalidAddress("the host of an address is a name like media.example.org, in ASCII")
    if not target.startswith("/"):
        target = "/" + target
    return Address(scheme, host, int(port), quote(target, safe="!$%&'()*+,-./:;=?@_~[]|^`{}\"<>"))


def _is_name(host: str, least_labels: int) -> bool:
    """Whether `host` is a host name of so many labels or more, whose last label doesn't begin with a digit."""
    labels = host.split(".")
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789-_")
    plain = all(
        0 < len(label) < 64 and allowed.issuperset(label) and label[0] != "-" and label[-1] != "-"
        for label in labels
    )
    return plain and len(labels) >= least_labels and len(host) < 254 and not labels[-1][0].isdigit()


def _as_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address in `host`: four decimal numbers without leading zeros, or IPv6; None for any other form."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet and can't lead to an internal network."""
    ip = _as_ip(address)
    if ip is None or ip.is_multicast or not ip.is_global:
        return False
    if any(ip in network for network in (*NOT_PUBLIC, *CARRIERS)):
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        return ip.scope_id is None and ip in ORDINARY
    return True


def resolve_host(host: str, port: int) -> list[str]:
    """The IP addresses of a host, from the system's resolver, without duplicates."""
    socket_type, flags = socket.SOCK_STREAM, socket.AI_ADDRCONFIG
    results = socket.getaddrinfo(host, port, type=socket_type, flags=flags)
    return list(dict.fromkeys(str(entry[4][0]) for entry in results))
