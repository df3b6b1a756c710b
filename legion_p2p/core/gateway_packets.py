"""Packets with which a router is asked to forward a port: PCP (RFC 6887) and its forerunner NAT-PMP (RFC 6886).

Both are spoken on one UDP port of the router. A router of either kind answers a request of the other with "unsupported version",
in its own version, so PCP is asked first. Everything that comes back is checked: length, version, operation, and that it answers
what was asked.
"""

import struct
from ipaddress import IPv4Address, IPv6Address

from legion_p2p.core.port_lease import Forwarding
from legion_p2p.errors import DecodeError

GATEWAY_PORT = 5351
MAX_REPLY_BYTES = 1100  # of PCP; NAT-PMP has 16
NONCE_BYTES = 12
TCP = 6
PCP_VERSION, PMP_VERSION = 2, 0
_UNSUPPORTED_VERSION = 1  # the same result code in both
_PMP_HEAD = struct.Struct("!BBHI")  # version, operation, result, seconds since the router started
_PMP_MAP = struct.Struct("!HHI")  # port here, port outside, lifetime
_PCP_HEAD = struct.Struct("!BBBBII12x")  # version, operation, reserved, result, lifetime, seconds since the router started
_PCP_MAP = struct.Struct("!12sB3xHH16s")  # nonce, protocol, port here, port outside, address outside


class WrongVersionError(DecodeError):
    """The router speaks the other of the two protocols. Ask in that."""


def pcp_request(nonce: bytes, client: str, port: int, outside: int, lifetime_s: int) -> bytes:
    """Ask for TCP port `outside`, or any, to lead to `port` at `client`; with `lifetime_s` 0, to end that."""
    head = struct.pack("!BBHI", PCP_VERSION, 1, 0, lifetime_s) + _mapped(client)
    return head + _PCP_MAP.pack(nonce, TCP, port, outside, _mapped("0.0.0.0"))


def read_pcp_reply(data: bytes, nonce: bytes, port: int) -> Forwarding:
    """What the router granted. Raises: WrongVersionError; DecodeError, if it refused, or if that is no answer to the request."""
    _check_version(data, PCP_VERSION)
    if len(data) < _PCP_HEAD.size + _PCP_MAP.size:
        raise DecodeError(f"PCP reply of {len(data)} bytes, at least {_PCP_HEAD.size + _PCP_MAP.size} are needed")
    _, operation, _, result, lifetime_s, _ = _PCP_HEAD.unpack_from(data)
    its_nonce, protocol, its_port, outside, _ = _PCP_MAP.unpack_from(data, _PCP_HEAD.size)
    if (operation, its_nonce, protocol, its_port) != (0x81, nonce, TCP, port):
        raise DecodeError("a PCP reply to another request")
    if result:
        raise DecodeError(f"the router refuses, with PCP's result {result}")
    return _granted(outside, lifetime_s)


def pmp_request(port: int, outside: int, lifetime_s: int) -> bytes:
    """The same in NAT-PMP, which has neither nonce nor client."""
    return struct.pack("!BBH", PMP_VERSION, 2, 0) + _PMP_MAP.pack(port, outside, lifetime_s)


def read_pmp_reply(data: bytes, port: int) -> Forwarding:
    """What the router granted. Raises: DecodeError, as above."""
    _check_version(data, PMP_VERSION)
    if len(data) < _PMP_HEAD.size:
        raise DecodeError(f"NAT-PMP reply of {len(data)} bytes")
    _, operation, result, _ = _PMP_HEAD.unpack_from(data)
    if result:
        raise DecodeError(f"the router refuses, with NAT-PMP's result {result}")
    if operation != 130 or len(data) < _PMP_HEAD.size + _PMP_MAP.size:
        raise DecodeError("a NAT-PMP reply to another request")
    its_port, outside, lifetime_s = _PMP_MAP.unpack_from(data, _PMP_HEAD.size)
    if its_port != port:
        raise DecodeError("a NAT-PMP reply about another port")
    return _granted(outside, lifetime_s)


def _check_version(data: bytes, version: int) -> None:
    if len(data) < 4:
        raise DecodeError(f"reply of {len(data)} bytes")
    result = data[3]  # the low byte of NAT-PMP's, and the only one of PCP's
    if data[0] != version or (result == _UNSUPPORTED_VERSION and data[1] & 0x80):
        raise WrongVersionError(f"the router speaks version {data[0]}, this is {version}")


def _granted(outside: int, lifetime_s: int) -> Forwarding:
    if not outside or not lifetime_s:
        raise DecodeError(f"the router granted port {outside} for {lifetime_s} s")
    return Forwarding(outside, float(lifetime_s))


def _mapped(host: str) -> bytes:
    return IPv6Address(f"::ffff:{IPv4Address(host)}").packed
