"""`legion-ctl report`: what happened in a run, in one file that can be viewed, kept and sent."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from legion_p2p.cli.failures import DONE
from legion_p2p.errors import ConfigError, UsageError
from legion_p2p.files.paths import FileKind, kind_of, shown, user_path
from legion_p2p.files.reading import opened
from legion_p2p.observe import human

METRICS = "metrics.jsonl"
MAX_FILES = 64  # peers that one report compares


def report(*metrics: str, out: Annotated[str, Parameter(metavar="FILE")] = "report.html") -> int:
    """Make one file with the curves, rounds, traffic and errors of a run, from metrics.jsonl.

    Example: legion-ctl report legion-out --out report.html

    Parameters
    ----------
    metrics
        Folders that legion-peer wrote with --out, or their metrics.jsonl; of several peers, to compare them.
    out
        File to write; a browser shows it offline.
    """
    from legion_p2p.files.writing import write_whole
    from legion_p2p.web.metrics_page import metrics_page, read_events
    from legion_p2p.web.record import RunRecord
    from legion_p2p.web.report import report_html

    if not 1 <= len(metrics) <= MAX_FILES:
        raise UsageError(f"give 1 to {MAX_FILES} folders of --out, or metrics.jsonl files")
    records: dict[str, RunRecord] = {}
    for path in map(file_of, metrics):
        record = records[label_of(path, records)] = RunRecord()
        with opened(path) as file:
            n_bad = read_events(file, record)
        if record.began is None:
            raise ConfigError(f"{shown(path)} has no events of a peer")
        if n_bad:
            print(f"{shown(path)}: skipped {human.whole_text(n_bad)} line{'s' * (n_bad != 1)} without an event")
    target = user_path(out)
    write_whole(target, report_html(metrics_page(records)))
    print(f"{shown(target)}: {len(records)} peer{'s' * (len(records) != 1)}; open it in a browser")
    return DONE


def file_of(given: str) -> Path:
    """The metrics.jsonl that is meant. Raises: ConfigError."""
    path = user_path(given)
    if kind_of(path) is FileKind.FOLDER:
        path = path / METRICS
    if kind_of(path) is FileKind.MISSING:
        raise ConfigError(f"{shown(path)} is not there: give the folder of --out of a peer, or its {METRICS}")
    return path


def label_of(path: Path, taken: Collection[str]) -> str:
    """A peer's label: the name of its folder."""
    name = path.resolve().parent.name if path.name == METRICS else path.stem
    label, n = name, 1
    while label in taken:
        n += 1
        label = f"{name} ({n})"
    return label
