"""Taking out of a text what its author would not want strangers to read: secrets, home folders, names of users, addresses.

Each address is replaced by the same number wherever it stands, so that a reader can still tell two of them apart. Peer ids stay:
they are public, and without them nobody could follow what happened.
"""

import re

from legion_p2p.core.admission import TEXT_PREFIX

LEFT_BYTES = 32  # a run of this many hex digits may be a key; shorter ones are ends of digests, versions and numbers

_HEX = re.compile(rf"(?<![0-9A-Za-z])[0-9a-fA-F]{{{LEFT_BYTES},}}(?![0-9A-Za-z])")
_TOKEN = re.compile(rf"{re.escape(TEXT_PREFIX)}[^\s\"',]+")
_SECRET = re.compile(r"(?i)\b([a-z_]*(?:api_?key|secret|password|passwd|authorization)\b[\"']?\s*[:=]\s*[\"']?)([^\s\"',]+)")
_ENV_TOKEN = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|AKIA)[A-Za-z0-9_-]{8,}")
_IPV4 = re.compile(r"(?<![0-9.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9]|\.[0-9])")
_IPV6 = re.compile(r"(?<![0-9A-Za-z:.])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![0-9A-Za-z:])")
_NAME = re.compile(r"(/dns(?:4|6|addr)?/)([^/\s\"',]+)")
_HOMES = re.compile(r"(?:/home|/Users|[A-Za-z]:\\+Users)[/\\]+[^/\\\s\"',:]+")
_LOCAL = ("127.0.0.1", "0.0.0.0", "::", "::1")


class Masker:
    """Masks texts of one report, the same thing always in the same way."""

    def __init__(self, home: str = "", user: str = "") -> None:
        """`home`, `user`: of the person whose report it is."""
        self._home = home.rstrip("/\\")
        self._user = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(user)}(?![A-Za-z0-9_])") if len(user) > 2 else None
        self._addresses: dict[str, str] = {}

    def mask(self, text: str) -> str:
        """The text without what is private."""
        if self._home and self._home != "/root":
            text = text.replace(self._home, "~")
        text = _HOMES.sub("~", text)
        text = _TOKEN.sub(f"{TEXT_PREFIX}<token>", text)
        text = _SECRET.sub(r"\1<secret>", text)
        text = _ENV_TOKEN.sub("<secret>", text)
        text = _HEX.sub("<hex>", text)
        text = _NAME.sub(lambda found: found[1] + self._address(found[2], "host"), text)
        text = _IPV4.sub(lambda found: self._address(found[0], "address"), text)
        text = _IPV6.sub(lambda found: self._address(found[0], "address") if found[0].count(":") > 1 else found[0], text)
        return text if self._user is None else self._user.sub("<user>", text)

    def _address(self, found: str, what: str) -> str:
        if found in _LOCAL or (what == "address" and _is_time(found)):
            return found
        return self._addresses.setdefault(found, f"<{what}-{len(self._addresses) + 1}>")


def _is_time(found: str) -> bool:
    """`12:03:59` has the colons of an IPv6 address."""
    parts = found.split(":")
    return len(parts) == 3 and all(part.isdigit() and len(part) <= 2 for part in parts)
