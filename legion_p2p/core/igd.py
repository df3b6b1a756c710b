"""What is said to a router of UPnP (an Internet Gateway Device), and what it may answer.

    search (SSDP)  -> where its description is: only over HTTP, and only at the address that the answer came from
    description    -> where its service for connections is controlled: only at that address
    control (SOAP) -> a port is forwarded, or is no longer; or an error with a number

Any device of a LAN can answer. It decides nothing but which of its own pages are asked for: no other host is ever contacted on
its word, and nothing is read beyond MAX_DESCRIPTION_BYTES.
"""

from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import msgspec

from legion_p2p.errors import DecodeError

SEARCH_HOST, SEARCH_PORT = "239.255.255.250", 1900
MAX_ANSWER_BYTES = 2048  # to a search, in one packet
MAX_DESCRIPTION_BYTES = 64 << 10  # those of routers have 2 to 10 KiB
MAX_CONTROL_BYTES = 8 << 10  # of an answer to a request
MAX_URL_CHARS = 512
SERVICES = tuple(
    f"urn:schemas-upnp-org:service:{kind}" for kind in ("WANIPConnection:2", "WANIPConnection:1", "WANPPPConnection:1")
)
DEVICES = tuple(f"urn:schemas-upnp-org:device:InternetGatewayDevice:{version}" for version in (2, 1))
DESCRIPTION = "legion_p2p"
CONFLICT = 718  # another machine has that port
PERMANENT_ONLY = 725  # the router keeps no lifetimes


class Url(msgspec.Struct, frozen=True):
    """A page of a device."""

    host: str
    port: int
    path: str


class GatewayControl(msgspec.Struct, frozen=True):
    """Where a router is told what to do."""

    url: Url
    service: str


class RouterRefusedError(DecodeError):
    """The router understood, and does not do it. `code` is UPnP's number for why."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the router refuses, with UPnP's error {code}")
        self.code = code


def search(device: str) -> bytes:
    """Ask all devices of a LAN for routers."""
    lines = ["M-SEARCH * HTTP/1.1", f"HOST: {SEARCH_HOST}:{SEARCH_PORT}", 'MAN: "ssdp:discover"', "MX: 1", f"ST: {device}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def read_answer(data: bytes, sender: str) -> Url:
    """Where the device at `sender` has its description. Raises: DecodeError."""
    head, *lines = data[:MAX_ANSWER_BYTES].decode("latin-1").split("\r\n")
    if not head.startswith("HTTP/1.") or " 200" not in head:
        raise DecodeError("not an answer to a search")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("st") not in DEVICES:
        raise DecodeError("not a router")
    return _page(headers.get("location", ""), sender)


def read_description(data: bytes, page: Url) -> GatewayControl:
    """Where the service for connections is controlled. Raises: DecodeError."""
    root = _parsed(data, MAX_DESCRIPTION_BYTES)
    base = f"http://{page.host}:{page.port}{page.path}"
    for wanted in SERVICES:
        for service in root.iter():
            if _name(service) == "service" and _text(service, "serviceType") == wanted:
                return GatewayControl(_page(urljoin(base, _text(service, "controlURL")), page.host), wanted)
    raise DecodeError("a router without a service for connections")


def request(control: GatewayControl, action: str, arguments: Mapping[str, str | int]) -> tuple[bytes, bytes]:
    """The header SOAPAction and the body of a request."""
    given = "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in arguments.items())
    body = (
        '<?xml version="1.0"?>\r\n<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action} xmlns:u="{control.service}">{given}</u:{action}></s:Body></s:Envelope>\r\n'
    )
    return f'"{control.service}#{action}"'.encode(), body.encode()


def forward_arguments(port: int, outside: int, client: str, lifetime_s: int) -> dict[str, str | int]:
    """Of AddPortMapping."""
    return {
        "NewRemoteHost": "",
        "NewExternalPort": outside,
        "NewProtocol": "TCP",
        "NewInternalPort": port,
        "NewInternalClient": client,
        "NewEnabled": 1,
        "NewPortMappingDescription": DESCRIPTION,
        "NewLeaseDuration": lifetime_s,
    }


def end_arguments(outside: int) -> dict[str, str | int]:
    """Of DeletePortMapping."""
    return {"NewRemoteHost": "", "NewExternalPort": outside, "NewProtocol": "TCP"}


def check_reply(status: int, data: bytes) -> None:
    """Raises: RouterRefusedError; DecodeError, if that is not an answer."""
    if status == 200:
        return
    code = next((found.text for found in _parsed(data, MAX_CONTROL_BYTES).iter() if _name(found) == "errorCode"), None)
    if code is None or not code.isascii() or not code.isdigit() or len(code) > 6:
        raise DecodeError(f"the router answered {status}, and no reason")
    raise RouterRefusedError(int(code))


def _page(url: str, host: str) -> Url:
    """A page of the device at `host`, whatever else the URL says. Raises: DecodeError."""
    if len(url) > MAX_URL_CHARS or not url.isascii() or not url.isprintable():
        raise DecodeError("not a URL")
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError as bad:
        raise DecodeError(f"not a URL: {bad}") from bad
    if parts.scheme != "http" or parts.hostname != host or parts.username is not None:
        raise DecodeError(f"a device at {host} names a page elsewhere")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if " " in path:
        raise DecodeError("not a URL")
    return Url(host, port, path)


def _parsed(data: bytes, limit: int) -> ElementTree.Element:
    if len(data) > limit:
        raise DecodeError(f"XML of {len(data)} bytes, limit is {limit}")
    text = data.decode("utf-8", errors="replace")  # whatever encoding it declares: another one could hide what is looked for here
    if "<!" in text.replace("<!--", "").replace("<![CDATA[", ""):  # definitions, which can grow without end; no router needs them
        raise DecodeError("XML with definitions")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as bad:
        raise DecodeError(f"not XML: {bad}") from bad


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _text(element: ElementTree.Element, name: str) -> str:
    return next(((child.text or "").strip() for child in element if _name(child) == name), "")
