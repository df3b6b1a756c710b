"""Who may ask the page's server for what. Decisions only: headers in, a refusal out.

The server listens on loopback, where every user of the machine can connect, and every web page that is open in a browser of this
machine can send requests:

    Host is not loopback           -> refused: a name of a stranger that resolves to 127.0.0.1 (DNS rebinding)
    Origin or site is another one  -> refused: a page of somebody else asks
    no token, or a wrong one       -> refused, but for the files of the page, which say nothing of a peer
    a body too long                -> refused

Nothing allows another origin anything: there are no CORS headers. The token comes in a header of its own, which a form or an
image of another page cannot send.
"""

import hmac
import secrets
from collections.abc import Iterable

import msgspec

from legion_p2p.net.http_server import is_loopback_host

TOKEN_BYTES = 32
MAX_BODY_BYTES = 2048  # of an action: a few short texts
API = "/api/"
_SAME_SITE = ("same-origin", "none")

Headers = Iterable[tuple[bytes, bytes]]


class Refusal(msgspec.Struct, frozen=True):
    """A code of HTTP, and why in words."""

    code: int
    why: str


def new_token() -> str:
    """A token that nobody can guess, of letters that an address can have."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def check_request(method: str, path: str, headers: Headers, token: str) -> Refusal | None:
    """Why a request is refused; None: it is answered."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    hosts = found.get("host", [])
    if len(hosts) != 1 or not is_loopback_host(hosts[0]):
        return Refusal(403, "only for this machine: the Host must be 127.0.0.1 or localhost")
    if any(origin != f"http://{hosts[0]}" for origin in found.get("origin", [])):
        return Refusal(403, "only the page itself may ask: the Origin is another one")
    if any(site not in _SAME_SITE for site in found.get("sec-fetch-site", [])):
        return Refusal(403, "only the page itself may ask: another site did")
    if path.startswith(API):
        if not _is_token(found.get("authorization", []), token):
            return Refusal(401, "the token is missing or wrong: open the address that the command printed, with all after the #")
    elif method != "GET":
        return Refusal(405, "read only: GET")
    length = found.get("content-length", ["0"])
    if len(length) != 1 or not (length[0].isascii() and length[0].isdigit()):
        return Refusal(400, "bad length")
    if int(length[0][:20]) > MAX_BODY_BYTES:
        return Refusal(413, f"at most {MAX_BODY_BYTES} bytes")
    return None


def _is_token(given: list[str], token: str) -> bool:
    """Compares in the same time, however much of it is right."""
    if len(given) != 1:
        return False
    return hmac.compare_digest(given[0].encode(), f"Bearer {token}".encode())
