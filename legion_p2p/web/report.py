"""A page as one file: everything that it needs is in it, and it loads nothing."""

import base64
import hashlib

import msgspec

from legion_p2p.web.feed import ClientState, encoded
from legion_p2p.web.page_blocks import WebPage
from legion_p2p.web.static_files import file_bytes

_STYLES = ("/uplot.css", "/page.css")
_SCRIPTS = ("/uplot.js", "/charts.js", "/map.js", "/page.js")
_DATA = '<script type="application/json" id="report">'


def report_html(page: WebPage) -> bytes:
    """The page as it is now. Its policy allows the scripts and styles that are in it, by their digests, and no others."""
    styles, scripts = [[file_bytes(path) for path in paths] for paths in (_STYLES, _SCRIPTS)]
    policy = f"default-src 'none'; img-src data:; style-src {_digests(styles)}; script-src {_digests(scripts)}"
    body = file_bytes("/").partition(b"<body>")[2].partition(b"</body>")[0]
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<title>legion_p2p</title>\n<link rel="icon" href="data:,">\n'
    )
    return b"".join([
        head.encode(), *(b"<style>" + style + b"</style>\n" for style in styles), b"</head>\n<body>", body, _DATA.encode(),
        _as_script_data(ClientState().update(encoded(page))), b"</script>\n",
        *(b"<script>" + script + b"</script>\n" for script in scripts), b"</body>\n</html>\n",
    ])  # fmt: skip


def page_of_report(html: bytes) -> dict[str, object]:
    """What a report was made of. Raises: ValueError, if it is none."""
    _, begin, rest = html.partition(_DATA.encode())
    if not begin:
        raise ValueError("not a report")
    found: dict[str, object] = msgspec.json.decode(rest.partition(b"</script>")[0])
    return found


def _digests(parts: list[bytes]) -> str:
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(part).digest()).decode()}'" for part in parts)


def _as_script_data(json: bytes) -> bytes:
    """JSON that no text in it can end: names come from strangers."""
    return json.replace(b"<", b"\\u003c").replace(b">", b"\\u003e").replace(b"&", b"\\u0026")
