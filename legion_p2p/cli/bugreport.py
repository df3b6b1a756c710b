"""legion-ctl bugreport: one file with what is needed to understand a fault, with secrets and personal data masked."""

import getpass
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from legion_p2p.cli.doctor import examine, lines_of, versions
from legion_p2p.cli.failures import DONE
from legion_p2p.core.masking import Masker
from legion_p2p.errors import NetworkError
from legion_p2p.files.paths import shown, user_path
from legion_p2p.files.reading import read_tail
from legion_p2p.files.writing import write_whole

MAX_EVENT_BYTES = 256 << 10  # about a thousand lines: the last minutes of a busy run
DEFAULT_NAME = "legion-bugreport.txt"


def bugreport(
    *,
    out: Annotated[str, Parameter(metavar="FILE")] = DEFAULT_NAME,
    events: Annotated[str, Parameter(metavar="FILE")] = "",
) -> int:
    """Write one file about a fault: versions, doctor, the status of running peers, the last events. Secrets are masked.

    Keys, tokens, home folders, user names and addresses are replaced. Read the file before you send it to anyone.

    Example: legion-ctl bugreport --events out/metrics.jsonl

    Parameters
    ----------
    out
        Where to write it.
    events
        A metrics.jsonl of the peer, from the folder of its --out; the end of it becomes part of the report.
    """
    import trio

    parts = [("versions", "\n".join(versions())), ("doctor", "\n".join(lines_of(examine())))]
    parts += [(f"peer at {where}", text) for where, text in trio.run(_statuses)]
    if events:
        parts.append(("last events", read_tail(user_path(events), MAX_EVENT_BYTES).decode(errors="replace")))
    path = user_path(out)
    write_whole(path, report_of(parts, Masker(os.path.expanduser("~"), _user())).encode())
    print(f"written to {shown(path)}; read it before you send it to anyone", file=sys.stderr)
    return DONE


def report_of(parts: list[tuple[str, str]], masker: Masker) -> str:
    """The text of a report of these parts, each with a title."""
    began = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return (
        "\n\n".join([f"legion_p2p: a report of {began}", *(f"## {title}\n\n{masker.mask(text)}" for title, text in parts)]) + "\n"
    )


async def _statuses() -> list[tuple[str, str]]:
    """Of each peer that runs here."""
    from legion_p2p.net.status_http import find_peers

    try:
        found = await find_peers()
    except NetworkError as bad:
        return [("this machine", str(bad))]
    encoder = msgspec.json.Encoder()
    return [
        (probe.address, probe.problem if probe.status is None else msgspec.json.format(encoder.encode(probe.status)).decode())
        for probe in found
    ]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return Path.home().name
