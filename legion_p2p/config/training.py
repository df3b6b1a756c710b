"""`Training` and `RunChoice`: what one `legion-peer` does, and into which run."""

from typing import Annotated, Any, Literal

import msgspec

from legion_p2p.config.fields import settle
from legion_p2p.config.forms import NONE, Form, PeerAddresses, path_text, refusal
from legion_p2p.config.new_run import NewRun
from legion_p2p.errors import UsageError

MAX_RUN_CHARS = 100  # of a name; an id is shorter
_RUN = "the name or id of a run"
TRACKER_NAMES = ("wandb", "tensorboard", "trackio", "otel", NONE)
TASK_FILES = "files of tasks, separated by commas"
TRACKERS = f"any of {', '.join(TRACKER_NAMES)}"


def _run(given: Any) -> str:
    if not isinstance(given, str) or len(given) > MAX_RUN_CHARS:
        raise refusal(given, _RUN)
    return given


def _new_run(given: Any) -> NewRun | None:
    if given is None or isinstance(given, NewRun):
        return given
    raise refusal(given, 'a NewRun("name")')


def _trackers(given: Any) -> tuple[str, ...]:
    if isinstance(given, str):
        given = given.split(",")
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
        raise refusal(given, TRACKERS)
    names = [name.strip() for text in given for name in text.split(",")]
    if wrong := [name for name in names if name not in TRACKER_NAMES]:
        raise refusal(wrong[0], TRACKERS)
    return tuple(dict.fromkeys(name for name in names if name != NONE))


def _files(given: Any) -> tuple[str, ...]:
    if isinstance(given, str):
        given = given.split(",")
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
        raise refusal(given, TASK_FILES)
    return tuple(name.strip() for text in given for name in text.split(",") if name.strip())


class RunChoice(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """The run to join or to create, and the contacts to enter through."""

    run: Annotated[str, Form(_RUN, _run)] = ""
    """Name or id of the run to join. If the store has the run and nobody else is in it, it resumes from there."""

    initial_peers: PeerAddresses = ()
    """Addresses of peers or bootstrap nodes to enter through; one that answers is enough. @FILE reads them from a file."""

    new_run: Annotated[NewRun | None, Form("a NewRun", _new_run)] = None
    """Create this run instead. It is an error if others or the store already have a run of that name."""

    create_or_join: bool = False
    """Create the new run only if neither the store nor any peer that answers has it; otherwise resume it or join it. For
    services, whose command is always the same."""

    def __post_init__(self) -> None:
        settle(self)
        if bool(self.run) == (self.new_run is not None):
            raise UsageError("give either the run to join or the one to create")

    @property
    def name(self) -> str:
        """Of the run, as it was given."""
        return self.new_run.name if self.new_run is not None else self.run


class Training(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """What `legion-peer` does in its run."""

    data: str = ""
    """What to train on: stdlib or tales (built in), a folder or file of text, a .bin of token ids, or stream:SOURCE,... to read
    files, folders or hf:NAME as they come. [default: what the run says]"""

    tokenizer: Annotated[str, path_text("the path of a file")] = ""
    """Of text that is streamed: a tokenizer.json, or a folder with one."""

    steps: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Leave after this many steps; 0: no limit."""

    minutes: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Leave after this many minutes; 0: no limit."""

    wait_for_members: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Start training only when the run has this many members, this one included; 0: start at once."""

    finish_together: bool = False
    """After the last step, go on serving until every member is done: all end with the same model."""

    eval_every_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Seconds between evaluations of the common model on held-out text; 0: only at the end. Each takes as long as some steps."""

    average: bool = False
    """Keep an average of the common model over the last sixteenth of the run, and save it beside the model if it is better on
    held-out text. It helps where the learning rate does not fall. Takes 8 bytes a parameter."""

    keep_best: bool = False
    """Keep the common model that --eval-every-s found best, and save it beside the last one if it is better on held-out text.
    Takes 4 bytes a parameter."""

    eval_tasks: Annotated[tuple[str, ...], Form(TASK_FILES, _files)] = ()
    """Multiple-choice tasks in the format of lm-evaluation-harness: YAML files, separated by commas. Members with the same tasks
    share the questions, so that each is answered once. Needs pip install "legion_p2p[eval]"."""

    eval_tasks_every: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)] = 1000
    """Steps of the run between two rounds of these tasks; the same at all members that share them. Each member's part of a round
    takes as long as it takes to read its questions once for each choice."""

    seed: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    """Of this peer's random numbers; for a new run also of its first weights."""

    device: Annotated[str, msgspec.Meta(max_length=64)] = "auto"
    """Where to train: cpu, cuda, cuda:1, mps, or auto."""

    threads: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    """CPU threads; 0: torch's own choice."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format that the model computes in. Parameters stay fp32 either way; bf16 takes half the memory for activations, and
    is fast on GPUs that have it."""

    accumulate: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 1
    """Compute the batch of a step in this many parts, one after the other: less memory, the same step."""

    compile: bool = False
    """Compile the model with torch.compile: the first step takes a minute, all others less. Needs a C++ compiler."""

    activation_checkpointing: bool = False
    """Keep only the activations between layers for the backward pass and recompute the rest: less memory, but steps take a
    third longer."""

    peak_tflops: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    """What the device can do at most, 10^12 operations a second, for model FLOPs utilisation; 0: as its data sheet says, if it is
    known."""

    out: Annotated[str, path_text("the path of a folder")] = ""
    """Folder for metrics.jsonl and the model; without it nothing is written."""

    report_to: Annotated[tuple[str, ...], Form(TRACKERS, _trackers)] = ()
    """Report this peer's metrics to wandb, tensorboard, trackio or otel, separated by commas; none: to none. Each needs the
    pip extra of its name."""

    def __post_init__(self) -> None:
        settle(self)
        if self.keep_best and not self.eval_every_s:
            raise UsageError("keep_best: say with eval_every_s how often the common model is evaluated")
