"""Where an agent may connect to: patterns of destinations, and the policy of a session.

    example.com              that host, and none of its subdomains
    *.example.com            its subdomains at any depth, and not itself
    203.0.113.7              an address that is asked for as such
    203.0.113.0/24           a network of them
    [2001:db8::1]            IPv6, in brackets; [2001:db8::/32] is a network
    example.com:443          any of these at one port; without it at every port

Hosts are read as the WHATWG standard has it (`ada-url`), and only what is written as what it is counts: a resolver
takes `0x7f.1` and `2130706433` for 127.0.0.1, and a reader does not. What is denied comes first, whether a host is
asked for by its name or has a denied address. A name by itself decides only that something is refused; what may be
connected to is decided on the address, so that a listed name which resolves to somewhere private (DNS rebinding) leads
nowhere. No name that is not listed is looked up for a session that has a list: a name server would hear of it.
"""

import ipaddress
import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import ada_url
import idna

__all__ = [
    "Destination",
    "IPAddress",
    "IPNetwork",
    "NetworkMode",
    "NetworkPolicy",
    "Verdict",
    "check_destination",
    "is_public",
    "read_authority",
    "read_host",
]

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_NAME = 253
_MAX_LABEL = 63
# A name with what may stand around it.
_MAX_TEXT = 300
_MAX_PORT = 65_535
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
# Letters that names of one language mix (UTS 39, "highly restrictive").
_EAST_ASIAN = {"LATIN", "CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "BOPOMOFO", "HANGUL"}

# Special purpose registries of IANA (RFC 6890 and what came later), and what is on nobody's internet besides.
_NOT_PUBLIC_4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # "this network"; Linux connects to itself at 0.0.0.0
            "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16",  # private
            "100.64.0.0/10",  # carrier-grade NAT; some clouds have their metadata here
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # the host of a virtual machine in Azure
            "169.254.0.0/16",  # link-local; clouds have their metadata here
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24",  # documentation
            "192.88.99.0/24",  # relays of 6to4
            "198.18.0.0/15",  # benchmarking
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)  # fmt: skip
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments, Teredo among them
            "2001:db8::/32", "3fff::/20",  # documentation
            "2002::/16",  # 6to4: an IPv4 address in other clothes
        ),
    )
)  # fmt: skip
# RFC 6052: IPv4 addresses behind a NAT64.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# RFC 5214: the part of an address of ISATAP before its IPv4 address.
_ISATAP = {0x0000_5EFE, 0x0200_5EFE}


class NetworkMode(StrEnum):
    """What a session may reach."""

    NONE = "NONE"
    LISTED = "LISTED"
    PUBLIC = "PUBLIC"


@dataclass(frozen=True, slots=True)
class Destination:
    """A pattern. `str()` gives its canonical form.

    Attributes:
        host: A domain in lower case and ASCII; empty where `network` is set.
        subdomains: Whether the subdomains of `host` are meant, and not itself.
        network: Addresses; a single one is a network of one.
        port: None for every port.
    """

    host: str = ""
    subdomains: bool = False
    network: IPNetwork | None = None
    port: int | None = None

    def __str__(self) -> str:
        if self.network is None:
            place = f"*.{self.host}" if self.subdomains else self.host
        else:
            one = self.network.num_addresses == 1
            place = str(self.network.network_address if one else self.network)
            if self.network.version == 6:
                place = f"[{place}]"
        return place if self.port is None else f"{place}:{self.port}"

    def fits(self, host: str, port: int, addresses: tuple[IPAddress, ...] = ()) -> bool:
        """Whether a connection to a host (as `read_host` gives it), which has one of these addresses, is meant."""
        if self.port is not None and self.port != port:
            return False
        if self.network is not None:
            return any(address in self.network for address in addresses)
        return host.endswith(f".{self.host}") if self.subdomains else host == self.host


def check_destination(text: str) -> Destination:
    """Read a pattern.

    Raises:
        ValueError: It is none; the text says why, and what to write.
    """
    _check_letters(text)
    if "://" in text:
        raise ValueError("a destination has no scheme: write the host, and :443 for https")
    if "@" in text:
        raise ValueError("a destination has no user or password: write the host alone")
    place, port = _split(text)
    if place.startswith("["):
        network = _network(place[1:-1])
        if network.version != 6:
            raise ValueError("only IPv6 stands in brackets: write the IPv4 address without")
        return Destination(network=network, port=port)
    if "/" in place:
        head, _, tail = place.partition("/")
        if not tail.isascii() or not tail.isdigit() or not re.fullmatch(r"[0-9.]+", head):
            raise ValueError("a destination has no path: write the host, or a network such as 203.0.113.0/24")
        return Destination(network=_network(place), port=port)
    if place == "*":
        raise ValueError("* alone is no destination: the mode PUBLIC allows every public host")
    subdomains = place.startswith("*.")
    name = place[2:] if subdomains else place
    if "*" in name:
        raise ValueError("a * stands only at the beginning, before a dot, as in *.example.com")
    host = read_host(_to_ascii(name))
    if (address := _literal(host)) is None:
        return Destination(host=host, subdomains=subdomains, port=port)
    if subdomains:
        raise ValueError("addresses have no subdomains: write a network, such as 203.0.113.0/24")
    return Destination(network=ipaddress.ip_network(address), port=port)


def read_authority(text: str, default_port: int | None = None) -> tuple[str, int]:
    """The host (as `read_host` gives it) and the port of `host:port`, where IPv6 stands in brackets.

    Raises:
        ValueError: It is none; the text says why.
    """
    _check_letters(text)
    if "@" in text:
        raise ValueError("a user or a password has no place before a host")
    place, port = _split(text)
    port = default_port if port is None else port
    if port is None:
        raise ValueError("the port is missing: write host:port")
    if place.startswith("["):
        host = read_host(place[1:-1])
        if ":" not in host:
            raise ValueError("only IPv6 stands in brackets")
        return host, port
    return read_host(place), port


def read_host(text: str) -> str:
    """The one form of a host that is written as what it is: a name in lower case, or an address without brackets.

    Raises:
        ValueError: It is not; the text says why.
    """
    _check_letters(text)
    if not text.isascii():
        raise ValueError("a host is written in ASCII: write other letters as punycode (xn--)")
    host = text.lower()
    if ":" in host:
        return str(_address(host))
    if host.endswith("."):
        raise ValueError("a host has no dot at its end")
    if len(host) > _MAX_NAME:
        raise ValueError(f"a host has at most {_MAX_NAME} characters")
    labels = host.split(".")
    for label in labels:
        if len(label) > _MAX_LABEL:
            raise ValueError(f"a part of a host has at most {_MAX_LABEL} characters")
        if _LABEL.fullmatch(label) is None:
            raise ValueError("a host has letters, digits and hyphens between its dots, and no hyphen at an end")
    if labels[-1] == "localhost":
        raise ValueError("localhost is the machine of whoever asks: write an address")
    try:
        meant = ada_url.URL(f"http://{host}/").hostname
    except ValueError:
        raise ValueError("the host is neither a name nor an address") from None
    if meant != host or (_NUMBER.fullmatch(labels[-1]) and _literal(host) is None):
        raise ValueError(f"the host is not written as what it is: {meant}")
    return host


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is decided, and by which rule."""

    allowed: bool
    rule: str


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """What a session may connect to.

    Attributes:
        mode: NONE: nothing; LISTED: `allowed`; PUBLIC: every public address.
        allowed: For LISTED.
        denied: Comes before everything else.
        private: Ranges that are not public and may be reached all the same: of the operator alone.
    """

    mode: NetworkMode
    allowed: tuple[Destination, ...] = ()
    denied: tuple[Destination, ...] = ()
    private: tuple[IPNetwork, ...] = ()

    def by_name(self, host: str, port: int) -> Verdict | None:
        """What can be said before anybody has looked a host up. None: decided on the address."""
        literal = _literal(host)
        verdict = self._listed(host, port, () if literal is None else _forms(literal))
        return None if verdict.allowed else verdict

    def by_address(self, host: str, port: int, address: str) -> Verdict:
        """Whether a connection to an address, which a host has, is allowed."""
        verdict = self._listed(host, port, _forms(ipaddress.ip_address(address)))
        if not verdict.allowed or is_public(address):
            return verdict
        network = self.private_range(address)
        if network is None:
            return Verdict(allowed=False, rule=f"{address} is not public")
        return Verdict(allowed=True, rule=f"private {network}") if self.mode is NetworkMode.PUBLIC else verdict

    def private_range(self, address: str) -> IPNetwork | None:
        """The range of the operator's that an address is in."""
        meant = _without_clothes(ipaddress.ip_address(address))
        return next((network for network in self.private if meant in network), None)

    def _listed(self, host: str, port: int, addresses: tuple[IPAddress, ...]) -> Verdict:
        """What the lists say of a host that has these addresses, none if they are not known yet."""
        if self.mode is NetworkMode.NONE:
            return Verdict(allowed=False, rule=str(self.mode))
        for destination in self.denied:
            if destination.fits(host, port, addresses):
                return Verdict(allowed=False, rule=f"denied {destination}")
        if self.mode is NetworkMode.PUBLIC:
            return Verdict(allowed=True, rule=str(self.mode))
        asked = addresses if _literal(host) is not None else ()
        for destination in self.allowed:
            if destination.fits(host, port, asked):
                return Verdict(allowed=True, rule=f"allowed {destination}")
        return Verdict(allowed=False, rule="not listed")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet.

    It does not if it is private, loopback, link-local (where clouds have their metadata), shared, reserved,
    documentation or multicast, or one of those in the clothes of IPv6.
    """
    ip = _without_clothes(ipaddress.ip_address(address))
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not any(ip in network for network in _NOT_PUBLIC_4)
    if ip.scope_id is not None or ip not in _GLOBAL_UNICAST or (int(ip) >> 32) & 0xFFFF_FFFF in _ISATAP:
        return False
    return ip.is_global and not any(ip in network for network in _NOT_PUBLIC_6)


def _without_clothes(ip: IPAddress) -> IPAddress:
    """The IPv4 address which an IPv4-mapped address or one behind a NAT64 stands for; others as they are."""
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return ip.ipv4_mapped
        if ip in _NAT64:
            return ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip


def _forms(ip: IPAddress) -> tuple[IPAddress, IPAddress]:
    """An address as it is written, and what it stands for: a rule may mean either."""
    return ip, _without_clothes(ip)


def _check_letters(text: str) -> None:
    if len(text) > _MAX_TEXT:
        raise ValueError(f"a host has at most {_MAX_NAME} characters")
    if not text:
        raise ValueError("the host is missing")
    for letter in text:
        if letter.isspace() or unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}:
            raise ValueError("a host holds no blanks, NUL or control characters")


def _split(text: str) -> tuple[str, int | None]:
    """The place and the port of `place:port`; a place in brackets keeps them."""
    if text.startswith("["):
        place, closed, rest = text.partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ValueError("IPv6 is written in brackets, and only :port may follow, as in [2001:db8::1]:443")
        return place + closed, _port(rest[1:]) if rest else None
    place, colon, port = text.rpartition(":")
    if not colon:
        return text, None
    if ":" in place:
        raise ValueError("IPv6 is written in brackets, as in [2001:db8::1]:443")
    if not place:
        raise ValueError("the host is missing")
    return place, _port(port)


def _port(text: str) -> int:
    if _PORT.fullmatch(text) is None or int(text) > _MAX_PORT:
        raise ValueError(f"a port is a number from 1 to {_MAX_PORT}, without zeros before it")
    return int(text)


def _literal(host: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _address(text: str) -> IPAddress:
    """An address in its usual form: IPv6 only for what is IPv6."""
    if "%" in text:
        raise ValueError("an address has no zone (%) here")
    address = _literal(text)
    if address is None:
        raise ValueError("that is no address: write it as 203.0.113.7 or [2001:db8::1]")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        raise ValueError(f"an IPv4 address is written as one: {address.ipv4_mapped}")
    return address


def _network(text: str) -> IPNetwork:
    address, slash, length = text.lower().partition("/")
    first = _address(address)
    if not slash:
        return ipaddress.ip_network(first)
    if not re.fullmatch(r"0|[1-9][0-9]{0,2}", length) or int(length) > first.max_prefixlen:
        raise ValueError(f"a network's length is a number from 0 to {first.max_prefixlen}")
    network = ipaddress.ip_network((first, int(length)), strict=False)
    if network.network_address != first:
        raise ValueError(f"a network begins at its first address: write {network}")
    return network


def _to_ascii(name: str) -> str:
    """A domain with letters of any script, as IDNA 2008 has it: each part of one script."""
    return ".".join(_label_to_ascii(label) for label in name.lower().split("."))


def _label_to_ascii(label: str) -> str:
    if label.isascii() and not label.startswith("xn--"):
        return label
    try:
        ascii_form = idna.alabel(label).decode()
        letters = idna.ulabel(ascii_form)
    except idna.IDNAError as error:
        raise ValueError(f"{ascii(label)[:80]} is no part of a domain: {ascii(str(error))[:200]}") from None
    scripts = {unicodedata.name(letter, "?").split()[0] for letter in letters if unicodedata.category(letter)[0] == "L"}
    if len(scripts) > 1 and not scripts <= _EAST_ASIAN:
        raise ValueError(f"{ascii_form} mixes letters of several scripts, which look like others: {sorted(scripts)}")
    return ascii_form
