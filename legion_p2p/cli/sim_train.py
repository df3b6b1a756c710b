"""legion-sim train: a model for each peer of a simulation, trained along what was recorded of it."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from legion_p2p.cli.common import at_least
from legion_p2p.cli.failures import DONE
from legion_p2p.cli.new_folder import new_folder
from legion_p2p.cli.output import print_json, progress_bar
from legion_p2p.cli.sim_options import AsJsonLine, Changes, change_of
from legion_p2p.files.paths import user_path


def train(
    graph: Annotated[str, Parameter(metavar="GRAPH")],
    /,
    *,
    changes: Changes = (),
    device: str = "auto",
    points: Annotated[int, Parameter(validator=at_least(1))] = 50,
    out: Annotated[str, Parameter(metavar="FOLDER")] = "",
    quiet: Annotated[bool, Parameter(negative=())] = False,
    json: AsJsonLine = False,
) -> int:
    """Train a real model along a simulation: the same peers average with each other at the same steps, on one device.

    Example: legion-sim train legion-out/sim-churn-1/graph.jsonl.gz --set task.kind=text

    Parameters
    ----------
    graph
        The graph.jsonl.gz that a simulation left.
    changes
        What to train and how it is averaged, in place of what the simulation had: as in task.kind=text or
        rounds.push_codec=int8.
    device
        auto, cpu, or a device of torch such as cuda.
    points
        Of the loss curve.
    out
        New folder for summary.json and loss.png. [default: legion-out/train-NAME-1, -2, ...]
    quiet
        Show no progress.
    json
        Print only the summary, as a line of JSON.
    """
    from legion_p2p.observe.human import loss_text, seconds_text, whole_text
    from legion_p2p.scenarios.graph_training import GraphTraining
    from legion_p2p.train.compute import choose_device

    path = user_path(graph)
    training = GraphTraining(path, dict(map(change_of, changes)), choose_device(device), points)
    folder = new_folder(out, f"train-{_name_of(path)}")
    with progress_bar("training", training.total_steps, quiet or json) as advance:
        summary = training.run(advance)
    training.write_into(folder, summary)
    if json:
        return print_json(summary)
    print(
        f"{whole_text(summary['n_peers'])} peers, {whole_text(summary['steps'])} steps of {whole_text(summary['n_elements'])} "
        f"parameters in {seconds_text(summary['wall_s'])} on {summary['device']}"
    )
    if summary["loss_last"] is not None:
        print(f"  loss {loss_text(summary['loss_first'])} -> {loss_text(summary['loss_last'])}")
    print(f"  {folder}/summary.json has the curve, loss.png shows it")
    return DONE


def _name_of(graph: Path) -> str:
    """Of the folder that the simulation left, without what it begins with."""
    return graph.resolve().parent.name.removeprefix("sim-") or "graph"
