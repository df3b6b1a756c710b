"""legion-demo: a whole swarm on this machine, next to a peer that trains alone.

This module reads the options and shows progress and result; `demo_swarm` runs the demo. Neither torch nor libp2p is imported
before the training is done; torch is needed then to evaluate the result.
"""

import contextlib
import json as json_module
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from legion_p2p.cli.bootstrap import dashboard_choice
from legion_p2p.cli.common import SOURCES_HELP, at_least, checked, make_app
from legion_p2p.cli.demo_page import DemoRecord, has_desktop, serve_in_background
from legion_p2p.cli.demo_plan import UPLOAD
from legion_p2p.cli.failures import DONE, FAILED
from legion_p2p.cli.new_folder import new_folder
from legion_p2p.cli.running import run_and_exit
from legion_p2p.cli.signals import Signals
from legion_p2p.core.profiles import parse_link
from legion_p2p.core.units import parse_rate
from legion_p2p.errors import UsageError

if TYPE_CHECKING:
    from legion_p2p.cli.demo_view import DemoView

NO_LIMIT = "none"
MAX_PEERS = 32  # each is a process of some 400 MB

HELP = """Watch a swarm train a small language model on this machine.

One bootstrap node and some peers, each a process of its own, find each other through the DHT and train one GPT on little stories,
with the settings that new runs have by default; beside them a lone peer makes as many steps. Takes 3 minutes.

  legion-demo
  legion-demo --peers 4 --minutes 5 --out my-demo"""


def check_upload(text: str) -> None:
    """Raises: UsageError."""
    if text != NO_LIMIT:
        parse_rate(text)


app = make_app("legion-demo", HELP, help_epilogue=SOURCES_HELP)


@Parameter(name="*", group=Group.create_ordered("Options"))
@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    peers: Annotated[int, Parameter(validator=at_least(1))] = 3
    """Peers in the swarm."""
    minutes: Annotated[float, Parameter(validator=at_least(0.1))] = 3.0
    """How long all of it may take; the number of steps follows from it and from this machine's speed."""
    out: Annotated[str, Parameter(metavar="FOLDER")] = ""
    """New folder for curves, metrics and the summary. [default: legion-out/demo-1, demo-2, ...]"""
    preset: Annotated[str, Parameter(metavar="SIZE")] = "xxs"
    """Size of the built-in GPT: xxs, s, m."""
    seed: Annotated[int, Parameter(validator=at_least(0))] = 0
    """Of the model's first weights and of the text's order."""
    regions: Annotated[int, Parameter(validator=at_least(1))] = 1
    """Places, 120 ms away from each other, that the peers are spread over: they form regions. Linux only."""
    upload: Annotated[str, Parameter(metavar="RATE|none", converter=checked(check_upload))] = UPLOAD
    """What each peer may send: so little that the default settings choose sparse pushes. none: as much as it can."""
    netem: Annotated[str, Parameter(converter=checked(parse_link), metavar="LINK")] = ""
    """Link to emulate at every peer: cable, dsl, ..., or settings."""
    store: Annotated[str, Parameter(metavar="FOLDER")] = ""
    """Folder for the checkpoints of the first peer, to try legion-ctl checkpoint on. [default: store in the folder of --out]"""
    lone: bool = True
    """Train the lone peer beside the swarm."""
    quiet: Annotated[bool, Parameter(negative=())] = False
    """Show nothing before the result."""
    json: Annotated[bool, Parameter(negative=())] = False
    """Print only the summary, as a line of JSON."""
    kill: bool = True
    """Kill a peer (kill -9) in the middle, and let another join; from three peers on."""
    dashboard: Annotated[str, Parameter(metavar="YES|NO|PORT", converter=checked(dashboard_choice))] = "yes"
    """Show a page in the browser: its address is printed, and on a desktop it is opened."""
    config: Annotated[str, Parameter(metavar="FILE")] = ""
    """TOML file with further options."""
    steps: Annotated[int, Parameter(validator=at_least(0), show=False)] = 0
    local_steps: Annotated[int, Parameter(validator=at_least(0), show=False)] = 0
    learning_rate: Annotated[float, Parameter(validator=at_least(0), show=False)] = 0.0
    batch: Annotated[int, Parameter(validator=at_least(0), show=False)] = 0
    codec: Annotated[str, Parameter(show=False)] = ""


@app.default
def demo(options: DemoOptions = DemoOptions()) -> int:
    from legion_p2p.cli.demo_plan import DemoPlan
    from legion_p2p.cli.demo_swarm import DemoError, Interrupted, run_demo
    from legion_p2p.cli.demo_view import DemoView

    if options.peers > MAX_PEERS:
        raise UsageError(f"--peers {options.peers}, at most {MAX_PEERS}: each is a process of its own")
    if options.regions > options.peers:
        raise UsageError(f"--regions {options.regions} with --peers {options.peers}: each needs a peer")
    check_preset(options.preset)
    out = new_folder(options.out, "demo")
    chosen: dict[str, Any] = {
        name: getattr(options, name) for name in ("local_steps", "learning_rate", "batch") if getattr(options, name)
    }
    if options.codec:
        chosen |= {"push_codec": options.codec, "update_codec": options.codec}
    plan = DemoPlan(
        n_peers=options.peers, minutes=options.minutes, preset=options.preset, seed=options.seed, lone=options.lone,
        steps=options.steps, n_regions=options.regions, netem=options.netem, kill=options.kill,
        upload=options.upload.removeprefix(NO_LIMIT),
        store=options.store or str(out / "store"),
        **chosen,
    )  # fmt: skip
    record = DemoRecord(plan)
    show = DemoView(plan, "none" if options.json or options.quiet else "view" if _can_draw() else "lines")
    with contextlib.ExitStack() as open_things:
        open_things.callback(show.close)
        signals = open_things.enter_context(Signals(before_exit=show.close_at_once))
        try:
            _open_page(record, options.dashboard, show)
            summary = run_demo(plan, out, show, record, signals)
        except Interrupted:
            show.close()
            print(f"legion-demo: stopped; what there is so far is in {out}", file=sys.stderr)
            return 128 + (signals.caught or 2)
        except DemoError as bad:
            show.close()
            print(f"legion-demo: error: {bad}", file=sys.stderr)
            return FAILED
    lines = told(summary, out)
    record.result(lines)
    from legion_p2p.web.report import report_html

    (out / "report.html").write_bytes(report_html(record.page()))
    if options.json:
        print(json_module.dumps(summary))
    else:
        print("\n".join(lines))
    return DONE if summary["digests_equal"] and summary["swarm_val_loss"] is not None else FAILED


def check_preset(name: str) -> None:
    """Raises: UsageError. The names are written here as well, for looking them up would import torch."""
    if name not in ("xxs", "s", "m", "l"):
        raise UsageError(f"--preset {name}: xxs, s, m or l; gpt2 needs a tokenizer that the demo does not bring")


def told(summary: dict[str, Any], out: Path) -> list[str]:
    """The result, in words."""
    from legion_p2p.observe import human

    n_peers, swarm, alone = summary["n_peers"], summary["swarm_val_loss"], summary["lone_val_loss"]
    up_to = "up to " if summary["killed"] else ""
    summed_up = (
        f"{n_peers} peers made {up_to}{human.whole_text(summary['local_steps'])} local steps each and read "
        f"{human.count_text(summary['tokens'])} bytes of text in all, in {human.whole_text(summary['rounds'])} rounds of "
        f"{1000 * summary['round_period_s']:.0f} ms."
    )
    lines = [
        "",
        *_wrapped(summed_up),
        "",
        f"  validation loss of the swarm's common model  {human.loss_text(swarm)}  nats per byte",
    ]
    if alone is not None:
        better = 100 * (1 - swarm / alone)
        verdict = f"the swarm is {better:.1f} % better" if better > 0 else f"the swarm is {-better:.1f} % worse"
        lines.append(f"  of a lone peer after as many steps           {human.loss_text(alone)}  {verdict}")
        if summary["lone_all_text_val_loss"] is not None:
            n_bytes = human.count_text(summary["lone_all_text_tokens"])
            loss = human.loss_text(summary["lone_all_text_val_loss"])
            lines.append(f"  of a lone peer after as much text, {n_bytes:>6}    {loss}  all of it in one place, and nothing sent")
        lines += ["", *_wrapped(summary["lone_note"])]
    lines += ["", "the common model at each peer:"]
    region_of = {peer_id: region for region, peer_ids in summary["regions"].items() for peer_id in peer_ids}
    several = len(summary["regions"]) > 1
    for label, peer_id in sorted(summary["peers"].items(), key=lambda item: (region_of[item[1]], item[0])):
        where = f"  region {region_of[peer_id]}" if several else ""
        lines.append(f"  {label}  {human.short_id(peer_id)}{where}  {summary['digests'][peer_id][:32]}..")
    lines.append(f"  {summary['verdict']}")
    if summary["killed"]:
        came = f", and {summary['joined']} joined and made the steps that were left" if summary["joined"] else ""
        lines += ["", f"{summary['killed']} was killed (kill -9) in the middle{came}"]
    if summary["lost"]:
        lines += ["", f"lost during the run: {'; '.join(summary['lost'])}"]
    both = summary["bytes_in_region"] + summary["bytes_across"]
    share = f", {100 * summary['bytes_across'] / both:.0f} % of it between regions" if several and both else ""
    traffic = (
        f"sent {human.bytes_text(summary['sent_bytes'])} in all{share}, received {human.bytes_text(summary['received_bytes'])}; "
        f"{human.count_text(summary['swarm_tokens_per_s'])} tokens/s all together"
        + (f", the lone peer {human.count_text(summary['lone_tokens_per_s'])}" if alone is not None else "")
    )
    lines += ["", *_wrapped(traffic)]
    if summary["sample"]:
        written = [line for part in summary["sample"].strip().splitlines() for line in _wrapped(human.clean(part)) or [""]]
        lines += ["", "the common model writes:", *(f"  | {line}".rstrip() for line in written)]
    if summary["checkpoint"]:
        store = shlex.join(["--store", summary["store"]])
        lines += [
            "", "checkpoints of the run are in a store; to look at them, and to take the model out:",
            f"  legion-ctl checkpoint list {store}",
            f"  legion-ctl checkpoint show {summary['checkpoint']} {store}",
            f"  legion-ctl checkpoint export {summary['checkpoint']} --safetensors {shlex.quote(str(out / 'exported'))} {store}",
        ]  # fmt: skip
    return [
        *lines,
        "",
        f"{human.seconds_text(summary['wall_s'])} in all; report.html, curves.png and the rest are in {out}",
    ]


def _wrapped(text: str) -> list[str]:
    import shutil
    import textwrap

    return textwrap.wrap(text, min(96, shutil.get_terminal_size().columns - 5))


def _open_page(record: DemoRecord, choice: str, show: "DemoView") -> None:
    """Serve the demo's page, print its address, and open it on a desktop."""
    from legion_p2p.web.hosting import ports_of

    ports = ports_of(choice)
    address = serve_in_background(record.page, ports) if ports else ""
    if not address:
        return
    show.announce(f"dashboard: {address}")
    if has_desktop(dict(os.environ), sys.platform, sys.stdout.isatty()):
        import webbrowser

        with contextlib.suppress(Exception):  # of whatever browser there is; the address was printed
            webbrowser.open(address)


def _can_draw() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def main() -> None:
    """The console script."""
    run_and_exit(app)


if __name__ == "__main__":
    main()
