"""What a demo is to do, and what is known of each of its peers."""

from typing import NamedTuple

import msgspec

from legion_p2p.cli.demo_processes import Child, Event
from legion_p2p.observe.status import Status

RUN_NAME = "demo"
TEXT = "tales"  # of simple English a model learns enough in three minutes that what it writes can be read
ALONE = "lone"
ALONE_ALL_TEXT = "lone-all-text"
"""The one that reads as much text as the swarm: as many steps, with all peers' windows in each."""
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
NEAR_AND_FAR = "rtt=2ms,inside=1ms,across=116ms"  # with both links 5 ms at one place, and 120 ms between two
CONTEXT = {"xxs": 128}  # instead of 64: who a story is about should still be seen at its end
N_PARAMS = {"xxs": 258_528, "s": 836_736, "m": 4_852_992, "l": 25_567_744}  # known without importing torch to count them
UPLOAD = "2mbit"
"""What each peer may send a second. It is little, as the model is: so the defaults of new runs choose sparse pushes, as they do
for a model of a hundred million parameters behind a home connection."""
MIN_PEERS_TO_KILL = 3
MIN_SHARDS = 10  # so that each of three peers almost surely owns some; sixteen cost small models more than their training


class DemoPlan(msgspec.Struct, frozen=True):
    """What to do. The defaults of the training were chosen by measurement: docs/records/demo.md."""

    n_peers: int
    minutes: float
    preset: str
    seed: int
    lone: bool
    steps: int = 0
    """0: as many as fit into `minutes`."""
    local_steps: int = 0
    """0, like an empty codec: what new runs have by default."""
    learning_rate: float = 0.0
    batch: int = 8
    push_codec: str = ""
    update_codec: str = ""
    upload: str = UPLOAD
    """Limit of what each peer sends; empty: none."""
    n_regions: int = 1
    """Places that the peers are spread over, 120 ms away from each other. They find their regions by themselves."""
    netem: str = ""
    """Link of every peer, as for legion-peer."""
    kill: bool = True
    """Kill a peer in the middle, and let another join."""
    store: str = ""
    """Folder in which the first peer keeps checkpoints; empty: none does."""

    @property
    def kills(self) -> bool:
        """Where enough are left, at one place."""
        return self.kill and self.n_peers >= MIN_PEERS_TO_KILL and self.n_regions == 1

    @property
    def shard_elements(self) -> int:
        n_shards = max(MIN_SHARDS, self.n_peers)
        return 512 * -(-N_PARAMS[self.preset] // (512 * n_shards)) if self.preset in N_PARAMS else 0

    def place(self, number: int) -> int:
        """Where the peer of this number is; 0: nowhere in particular."""
        return 1 + (number - 1) % self.n_regions if self.n_regions > 1 else 0

    def link_options(self, number: int) -> list[str]:
        """Options of legion-peer for the link of the peer of this number, and where it listens."""
        place = self.place(number)
        limit = ["--upload", self.upload] if self.upload and not self.netem else []
        if not place:
            return ["--listen", LOOPBACK, *limit, *(["--netem", self.netem] if self.netem else [])]
        link = ",".join([*([self.netem] if self.netem else []), NEAR_AND_FAR, f"place={place}"])
        return ["--listen", f"/ip4/127.{place}.0.1/tcp/0", *limit, "--netem", link, "--region", "auto"]

    def spec_text(self, n_steps: int) -> str:
        """SPEC.toml of the run: what is to be learned, and for how long. How is left to the defaults of new runs."""
        model = [f"context = {CONTEXT[self.preset]}"] if self.preset in CONTEXT else []
        rounds = [f"local_steps = {self.local_steps}"] if self.local_steps else []
        rounds += [f'push_codec = "{self.push_codec}"'] if self.push_codec else []
        rounds += [f'update_codec = "{self.update_codec}"'] if self.update_codec else []
        rate = [f"learning_rate = {self.learning_rate}"] if self.learning_rate else []
        return "\n".join([
            f'name = "{RUN_NAME}"', f'preset = "{self.preset}"', f'data = "{TEXT}"', f"seed = {self.seed}", "",
            "[model]", *model, "",
            "[rounds]", *rounds, f"shard_elements = {self.shard_elements}", "",
            "[inner]", *rate, f"batch = {self.batch}",
            f"decay_steps = {n_steps}", f"warmup_steps = {min(50, max(1, n_steps // 10))}", "",
        ])  # fmt: skip


class DemoPeer:
    """What is known of one peer or of the lone one."""

    def __init__(self, label: str, child: Child) -> None:
        self.label = label
        self.child = child
        self.loaded = False
        self.step_s: float | None = None
        self.address = ""
        self.status: Status | None = None
        self.losses: list[tuple[int, float]] = []
        self.evals: list[tuple[int, float]] = []
        self.step_times: list[float] = []
        self.rounds: list[tuple[int, float]] = []
        self.averaged: list[float] = []
        self.checkpoint = ""
        """CID of the newest that it has stored."""
        self.finished: Event | None = None
        self.exit_code: int | None = None

    @property
    def lost(self) -> bool:
        return self.exit_code is not None and (self.finished is None or self.exit_code != 0)

    @property
    def settled(self) -> bool:
        """Nothing more is to come from it."""
        return self.exit_code is not None


class Contestants(NamedTuple):
    """Whose results are compared."""

    peers: list[DemoPeer]
    lone: DemoPeer | None
    """Trained alone, with as many steps as each peer."""
    lone_all_text: DemoPeer | None
    """Trained alone, with as many steps, and as much text as all peers together."""
    killed: str
    """Label of the peer that was killed on purpose; empty: none was."""
    joined: str
    """Label of the peer that joined in the middle, and ended with the others."""
