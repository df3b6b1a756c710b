"""Which fields of the public values are options of `legion-peer`, and how `--help` shows them."""

from dataclasses import dataclass

import msgspec
from cyclopts import Group

from legion_p2p.config import Inner, Limits, Manners, NewRun, Peer, Rounds, RunChoice, Store, Training

WHICH = Group.create_ordered("Which run")
NEW = Group.create_ordered("A new run (these options win over SPEC.toml)")
TRAINING = Group.create_ordered("Training")
NETWORK = Group.create_ordered("This peer on the network")
MANNERS = Group.create_ordered("What it may take of this machine")
CHECKPOINTS = Group.create_ordered("Checkpoints")
OUTPUT = Group.create_ordered("Output")


@dataclass(frozen=True)
class Option:
    """A field of a struct as an option."""

    kind: type[msgspec.Struct]
    field: str
    group: Group
    metavar: str = ""
    flag: str = ""
    """Where it is not called like the field."""
    alias: str = ""
    help: str = ""
    """Instead of the field's docs, where a flag means more than the field."""
    default: str = ""
    """What happens where it is not given, in words, if the field's default does not say it."""
    is_told: bool = True
    """Shown by --help; what few people need is in docs/commands/legion-peer.md."""

    @property
    def name(self) -> str:
        """Of the flag."""
        return self.flag or "--" + self.field.replace("_", "-")

    @property
    def key(self) -> str:
        """Of the value among those that the command receives."""
        return self.name[2:].replace("-", "_")


USUAL_ROUNDS = ("local_steps", "push_codec", "update_codec", "placement")
USUAL_INNER = ("optimizer", "learning_rate", "batch", "context")
OPTIONS = (
    Option(RunChoice, "run", WHICH, "NAME"),
    Option(
        RunChoice, "initial_peers", WHICH, "ADDR...",
        default="those in bootstrap_peers.txt of this folder or of the package, and peers of the last session",
    ),
    Option(
        RunChoice, "new_run", WHICH, "SPEC|NAME",
        help="Create a run instead: the SPEC.toml that describes it, or a name, with the options below. It is an error if others "
        "or the store already have a run of that name.",
    ),
    Option(RunChoice, "create_or_join", WHICH),
    Option(NewRun, "preset", NEW, "SIZE"),
    Option(NewRun, "architecture", NEW, "hf:WHAT", flag="--model"),
    Option(NewRun, "start_from", NEW, "CID"),
    Option(NewRun, "links", NEW, help="What members' connections carry; chooses what is not said below: see --dry-run."),
    Option(NewRun, "sharding", NEW),
    Option(NewRun, "admission", NEW),
    Option(NewRun, "target_steps", NEW),
    Option(NewRun, "target_tokens", NEW),
    Option(NewRun, "target_loss", NEW),
    Option(Rounds, "local_steps", NEW),
    Option(Rounds, "push_codec", NEW, "NAME", alias="--codec"),
    Option(Rounds, "update_codec", NEW, "NAME", default="that of --push-codec"),
    Option(Rounds, "placement", NEW),
    Option(Inner, "optimizer", NEW),
    Option(Inner, "learning_rate", NEW, alias="--lr"),
    Option(Inner, "batch", NEW, default="4"),
    Option(Inner, "context", NEW),
    *(Option(Rounds, field, NEW, is_told=False) for field in Rounds.__struct_fields__ if field not in USUAL_ROUNDS),
    *(Option(Inner, field, NEW, is_told=False) for field in Inner.__struct_fields__ if field not in USUAL_INNER),
    Option(Training, "data", TRAINING, "WHAT"),
    Option(Training, "tokenizer", TRAINING, "FILE", default="bytes"),
    Option(Training, "steps", TRAINING),
    Option(Training, "minutes", TRAINING),
    Option(Training, "wait_for_members", TRAINING),
    Option(Training, "finish_together", TRAINING),
    Option(Training, "eval_every_s", TRAINING, "SECONDS"),
    Option(Training, "average", TRAINING),
    Option(Training, "keep_best", TRAINING),
    Option(Training, "eval_tasks", TRAINING, "FILE"),
    Option(Training, "eval_tasks_every", TRAINING, "STEPS"),
    Option(Training, "seed", TRAINING),
    Option(Training, "device", TRAINING, "NAME"),
    Option(Training, "threads", TRAINING),
    Option(Training, "precision", TRAINING),
    Option(Training, "accumulate", TRAINING),
    Option(Training, "compile", TRAINING),
    Option(Training, "activation_checkpointing", TRAINING),
    Option(Training, "peak_tflops", TRAINING),
    Option(Peer, "identity", NETWORK, "FILE", default="a free one of the user's data folder"),
    Option(Peer, "listen", NETWORK, "ADDR..."),
    Option(Peer, "announce", NETWORK, "ADDR..."),
    Option(Peer, "port_mapping", NETWORK, "YES|NO", default="yes"),
    Option(Peer, "lan", NETWORK, "YES|NO", default="yes"),
    Option(Peer, "network_key", NETWORK, "FILE"),
    Option(Peer, "role", NETWORK),
    Option(Peer, "weight", NETWORK),
    Option(Peer, "region", NETWORK, "LABEL"),
    Option(Peer, "relay", NETWORK, "RATE"),
    Option(Peer, "speed_tests", NETWORK, "N"),
    Option(Peer, "volunteer_relay", NETWORK),
    Option(Peer, "token", NETWORK, "FILE"),
    Option(Peer, "dp", NETWORK, "SETTINGS"),
    Option(Limits, "upload", NETWORK, "RATE"),
    Option(Limits, "download", NETWORK, "RATE"),
    Option(Limits, "quiet_hours", NETWORK, "HOURS"),
    Option(Peer, "search_s", NETWORK, "SECONDS"),
    Option(Peer, "offload", TRAINING),
    Option(Limits, "netem", NETWORK, "LINK"),
    Option(Manners, "when", MANNERS),
    Option(Manners, "on_battery", MANNERS, "YES|NO", default="yes"),
    Option(Manners, "max_cpu", MANNERS, "SHARE"),
    Option(Manners, "max_temperature", MANNERS, "DEGREES"),
    Option(Manners, "max_memory", MANNERS, "SIZE"),
    Option(Manners, "monthly", MANNERS, "SIZE"),
    Option(Manners, "priority", MANNERS),
    Option(Store, "path", CHECKPOINTS, "FOLDER", flag="--store", default="beside the identity"),
    Option(Store, "max_gb", CHECKPOINTS, "GB", flag="--store-max-gb"),
    Option(Store, "keep", CHECKPOINTS, "WHAT"),
    Option(Store, "exports", CHECKPOINTS, "FOLDER"),
    Option(Store, "shared", CHECKPOINTS, "FOLDER...", flag="--share"),
    Option(Store, "checkpoint_every_s", CHECKPOINTS, "SECONDS"),
    Option(Training, "out", OUTPUT, "FOLDER"),
    Option(Peer, "dashboard", OUTPUT, "YES|NO|PORT", default="yes"),
    Option(Training, "report_to", OUTPUT, "WHAT"),
    Option(Peer, "status", OUTPUT),
    Option(Peer, "metrics", OUTPUT, "[HOST:]PORT"),
)  # fmt: skip
