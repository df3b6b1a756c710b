"""legion-ctl plan: what a run would cost its peers, before it exists."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter

from legion_p2p.cli.common import at_least, checked
from legion_p2p.cli.failures import DONE
from legion_p2p.cli.plan_text import plan_lines
from legion_p2p.config import Inner, NewRun, Rounds
from legion_p2p.config.fields import struct_of
from legion_p2p.config.new_run import ARCHITECTURE_PREFIX, chosen_inner, chosen_rounds, sharded_inner, sharded_rounds
from legion_p2p.core.presets import DEFAULT_LINKS, Links
from legion_p2p.core.run import RunSpec, Sharding
from legion_p2p.core.units import parse_duration, parse_rate
from legion_p2p.errors import UsageError

if TYPE_CHECKING:
    from legion_p2p.train.gpt_config import GPTConfig
    from legion_p2p.train.sizing import Forecast

SIZES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
SIZE_FORM = "a preset, a size such as 124m or 7b, or hf:NAME, hf:CONFIG.json or hf:FOLDER"
MAX_SIZE_CHARS = 20
MAX_BATCH = 65536  # windows in a step, as a run may say
FILE_CHARS = 120

_MANY = Parameter(consume_multiple=True, negative=())


def plan(  # noqa: PLR0913 (each is an option)
    *,
    model: Annotated[str, Parameter(metavar="SIZE")],
    peers: Annotated[int, Parameter(validator=at_least(1))],
    up: Annotated[str, Parameter(converter=checked(parse_rate), metavar="RATE")],
    down: Annotated[str, Parameter(converter=checked(parse_rate), metavar="RATE")] = "",
    rtt: Annotated[str, Parameter(converter=checked(parse_duration), metavar="TIME")] = "50ms",
    links: Annotated[Links, Parameter()] = DEFAULT_LINKS,
    sharding: Annotated[Sharding, Parameter()] = "none",
    codec: Annotated[tuple[str, ...], _MANY, Parameter(metavar="NAME...")] = (),
    update_codec: Annotated[tuple[str, ...], _MANY, Parameter(metavar="NAME...")] = (),
    local_steps: Annotated[int | None, Parameter(validator=at_least(1))] = None,
    max_local_steps: Annotated[int | None, Parameter(validator=at_least(1))] = None,
    step_s: Annotated[float | None, Parameter(validator=at_least(1e-6))] = None,
    tokens_per_step: Annotated[int | None, Parameter(validator=at_least(1))] = None,
    tflops: Annotated[float, Parameter(validator=at_least(1e-6))] = 20.0,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Show what a run would cost its peers: bytes, seconds per sync, and the share of time that this takes. Starts nothing.

    Example: legion-ctl plan --model 7b --peers 100 --up 10mbit --codec int8 topk64-2bit

    Parameters
    ----------
    model
        A preset of the built-in GPT (xxs, s, m, l, gpt2); a size: 124m, 1b, 7b, for a GPT of about that many parameters; or a
        model of transformers, as for legion-peer: hf:llama-1b, hf:FOLDER, hf:CONFIG.json.
    peers
        Members of the run, all alike.
    up
        What each can send, such as 10mbit.
    down
        What each can receive. [default: as --up]
    rtt
        Round trip between two of them.
    links
        As for legion-peer: chooses codecs and local steps where the options below do not.
    sharding
        full: of a sharded run, what each step takes of a member, and whether the network is fast enough.
    codec
        Codec of what members push; a peer may use any further ones instead, as its connection allows.
    update_codec
        The same for what owners send to all. [default: as --codec, where that is given]
    local_steps
        Steps between two averaging rounds.
    max_local_steps
        Most local steps between two rounds of a peer with a slow connection.
    step_s
        Seconds of a local step. [default: by --tflops]
    tokens_per_step
        Of one peer. [default: 4 windows of the run]
    tflops
        Arithmetic that a peer achieves, in 10^12 operations a second. Without --step-s, a step takes 6 operations for each
        parameter and token.
    json
        Print the figures as JSON, on one line.
    """
    from legion_p2p.train.sizing import Connection, forecast

    rounds: dict[str, Any] = {}
    for kind, codecs in (("push", codec), ("update", update_codec or codec)):
        if codecs:
            rounds |= {f"{kind}_codec": codecs[0], f"{kind}_codecs": codecs[1:]}
    rounds |= {"local_steps": local_steps} if local_steps else {}
    rounds |= {"max_local_steps": max_local_steps} if max_local_steps else {}
    spec, context = _spec(model, links, struct_of(Rounds, rounds), sharding)
    if tokens_per_step:
        batch = min(MAX_BATCH, max(1, round(tokens_per_step / context)))
        spec = msgspec.structs.replace(spec, inner=msgspec.structs.replace(spec.inner, batch=batch))
    if sharding == "full":
        return _show_sharded(spec, peers, min(parse_rate(up), parse_rate(down or up)), json)
    tokens = tokens_per_step or spec.inner.batch * context
    numel = sum(p.numel for p in spec.params)
    made = forecast(
        spec,
        peers,
        Connection(parse_rate(up), parse_rate(down or up), parse_duration(rtt)),
        # forward and backward: 6 N operations a token (Kaplan et al., 2001.08361, section 2.1)
        step_s if step_s is not None else 6 * numel * tokens / (tflops * 1e12),
        tokens,
    )
    _show(made, model, json)
    return DONE


def model_named(text: str) -> "GPTConfig":
    """A preset, or a GPT of about the size that `text` says. Raises: UsageError."""
    from legion_p2p.train.gpt_config import PRESETS, of_size
    from legion_p2p.train.sizing import check_size

    if text in PRESETS:
        return PRESETS[text]
    lower = text.strip().lower()
    number, unit = lower[:-1], lower[-1:]
    if unit not in SIZES or len(lower) > MAX_SIZE_CHARS or not number.replace(".", "", 1).isdecimal() or not number.isascii():
        raise UsageError(f"--model {text[:MAX_SIZE_CHARS]!r}: must be {SIZE_FORM}; presets are {', '.join(PRESETS)}")
    n_params = float(number) * SIZES[unit]
    check_size(n_params)
    return of_size(n_params)


def _spec(model: str, links: Links, rounds: Rounds, sharding: Sharding) -> tuple[RunSpec, int]:
    """A run as `legion-peer` would create it, and the tokens in one of its windows.

    Raises: ConfigError; UsageError; IncompatibleModelError; StoreError.
    """
    from legion_p2p.train.described import check_codecs, described, shape_of
    from legion_p2p.train.gpt import shapes_of
    from legion_p2p.train.sizing import check_size

    if model.startswith(ARCHITECTURE_PREFIX):
        spec = described(NewRun("plan", links=links, architecture=model, rounds=rounds, sharding=sharding))
        check_size(sum(p.numel for p in spec.params))
    else:
        config = model_named(model)
        is_sharded = sharding == "full"
        chosen = sharded_rounds(rounds) if is_sharded else chosen_rounds(rounds, links)
        inner = sharded_inner(Inner()) if is_sharded else chosen_inner(Inner(), links)
        spec = RunSpec("plan", "", shapes_of(config), chosen, inner, msgspec.to_builtins(config), sharding=sharding)
        check_codecs(spec)
        spec.check()
    return spec, shape_of(spec).context


def _show_sharded(spec: RunSpec, peers: int, bps: float, as_json: bool) -> int:
    """Raises: UsageError."""
    from legion_p2p.train.job_plan import plan_of

    made = plan_of(spec, (peers,), bps)
    print(msgspec.json.encode(made).decode() if as_json else "\n".join(plan_lines(made)))
    return DONE


def _show(made: "Forecast", model: str, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(made).decode())
        return
    from rich.console import Console

    from legion_p2p.dashboard.forecast import render_forecast

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:  # a file has no width: let every column be there
        console = Console(highlight=False, width=FILE_CHARS)
    report = render_forecast(made, model, width=console.width, ascii_only=console.options.ascii_only)
    console.print(report, soft_wrap=True)
