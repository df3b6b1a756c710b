"""Who averaged what when: the graph of a simulation, as `legion-sim train` replays it with another model.

A gzipped file of JSON lines: a `GraphHeader`, then what happened, in the order in which it did. It contains no parameters, so a
model of any size can be trained along it. Numbers stand for things: a peer's is its place in `GraphHeader.peers`; states (a state
is a version of a shard, as its owner made it) and pushes are numbered as they appear.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from legion_p2p.errors import ConfigError
from legion_p2p.files.paths import shown
from legion_p2p.scenarios.scenario import Scenario

GRAPH_FILE = "graph.jsonl.gz"
FORMAT = "legion-sim graph 1"
AS_HANDED_IN = -1  # in place of a state: the bytes are those that this peer handed in last, because it is alone
MAX_LINE_BYTES = 64 << 20  # the header names up to 10,000 peers


class GraphHeader(msgspec.Struct, frozen=True):
    """What the simulation was."""

    format: str
    seed: int
    scenario: Scenario
    n_shards: int
    peers: tuple[str, ...]
    ids: tuple[str, ...]
    """Of each of them: contributions are summed in the order of these."""


class _GraphLine(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A line of the file."""


class BeginLine(_GraphLine, frozen=True, tag="begin"):
    """A peer is in the run, with the parameters and the optimizer of one that starts."""

    peer: int


class OriginLine(_GraphLine, frozen=True, tag="origin"):
    """A shard as the run was created with it."""

    state: int
    shard: int


class TakeLine(_GraphLine, frozen=True, tag="take"):
    """After that many local steps of its life, a peer takes these states of shards into its parameters."""

    peer: int
    steps: int
    states: tuple[tuple[int, int], ...]
    """Shard and state, or AS_HANDED_IN."""


class HandInLine(_GraphLine, frozen=True, tag="hand"):
    """After that many steps it gives to the run what it has trained of these shards since it did so last."""

    peer: int
    steps: int
    shards: tuple[int, ...]


class PackLine(_GraphLine, frozen=True, tag="pack"):
    """What it handed in last of a shard becomes a push."""

    push: int
    peer: int
    shard: int
    version: int
    tokens: int
    steps: int
    codec: str


class CloseLine(_GraphLine, frozen=True, tag="close"):
    """An owner makes a state of the one before and of pushes."""

    region: str
    owner: int
    shard: int
    version: int
    base: int
    state: int
    pushes: tuple[int, ...]
    codec: str


class ReleaseLine(_GraphLine, frozen=True, tag="release"):
    """A peer owns a shard no longer, and what it had kept for later rounds is given to `heir`, or lost."""

    region: str
    owner: int
    shard: int
    heir: int | None = None


class AloneLine(_GraphLine, frozen=True, tag="alone"):
    """What a peer that is alone handed in of a shard last is the next state."""

    region: str
    peer: int
    shard: int
    state: int


class MergeLine(_GraphLine, frozen=True, tag="merge"):
    """A peer gives up a state of its own for that of others, and what it was ahead goes with its next push."""

    peer: int
    shard: int
    ours: int
    theirs: int


class SyncLine(_GraphLine, frozen=True, tag="sync"):
    """A region answers another one that asked for a sync of a shard, and has moved."""

    region: str
    other: str
    shard: int
    rate: float


class SyncedLine(_GraphLine, frozen=True, tag="synced"):
    """The one that asked, `region`, has moved as well."""

    region: str
    other: str
    shard: int


class EndLine(_GraphLine, frozen=True, tag="end"):
    """A peer has gone, after that many steps."""

    peer: int
    steps: int


class LookLine(_GraphLine, frozen=True, tag="look"):
    """A sample: for each region the states of all shards that one of its members holds."""

    at_s: float
    n_steps: int
    copies: tuple[tuple[int, ...], ...]


Line = (
    BeginLine | OriginLine | TakeLine | HandInLine | PackLine | CloseLine | ReleaseLine | AloneLine | MergeLine | SyncLine
    | SyncedLine | EndLine | LookLine
)  # fmt: skip


class GraphWriter:
    """Writes a graph to a file; the same graph always to the same bytes. A context manager."""

    def __init__(self, path: Path) -> None:
        self._raw = path.open("wb")
        self._file = gzip.GzipFile("", "wb", compresslevel=4, fileobj=self._raw, mtime=0)
        self._encoder = msgspec.json.Encoder()

    def __enter__(self) -> "GraphWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._raw.close()

    def write(self, line: GraphHeader | Line) -> None:
        self._file.write(self._encoder.encode(line) + b"\n")


def read_graph(path: Path) -> tuple[GraphHeader, list[Line]]:
    """Raises: ConfigError, naming the line."""
    try:
        with gzip.open(path, "rb") as file:
            header = _header_of(path, file)
            decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
            return header, list(_lines_of(path, file, decoder))
    except (OSError, EOFError, zlib.error) as bad:
        raise ConfigError(f"{shown(str(path))}: cannot be read: {bad}") from bad


def _header_of(path: Path, file: gzip.GzipFile) -> GraphHeader:
    raw = file.readline(MAX_LINE_BYTES)
    try:
        header = msgspec.json.decode(raw, type=GraphHeader)
    except (msgspec.DecodeError, UnicodeDecodeError) as bad:
        raise ConfigError(f"{shown(str(path))}: this is no graph of legion-sim: {bad}") from bad
    if header.format != FORMAT:
        raise ConfigError(f"{shown(str(path))}: the format is {shown(header.format)}, this version reads {FORMAT!r}")
    return header


def _lines_of(path: Path, file: gzip.GzipFile, decoder: "msgspec.json.Decoder[Line]") -> Iterator[Line]:
    for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 2):
        try:
            yield decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as bad:
            raise ConfigError(f"{shown(str(path))}: line {number}: {bad}") from bad
