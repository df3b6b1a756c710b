"""The files that the page is made of, and the headers that all answers have."""

from functools import cache
from importlib import resources

import msgspec


class PageFile(msgspec.Struct, frozen=True):
    name: str
    kind: str


FILES = {
    "/": PageFile("index.html", "text/html"),
    "/page.css": PageFile("page.css", "text/css"),
    "/page.js": PageFile("page.js", "text/javascript"),
    "/map.js": PageFile("map.js", "text/javascript"),
    "/charts.js": PageFile("charts.js", "text/javascript"),
    "/uplot.css": PageFile("uplot.css", "text/css"),
    "/uplot.js": PageFile("uplot.js", "text/javascript"),
}
"""By path. uPlot is vendored as its authors publish it: its licence is beside it."""

MAX_PAGE_BYTES = 300_000  # of all files together: loaded at once, and small enough to mail as a report

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@cache
def file_bytes(path: str) -> bytes:
    """A file of FILES. Raises: KeyError."""
    return resources.files("legion_p2p.web").joinpath("static", FILES[path].name).read_bytes()
