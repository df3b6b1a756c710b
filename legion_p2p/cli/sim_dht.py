"""legion-sim dht: a model of the DHT alone, with many more nodes than can be simulated."""

from typing import Annotated

from cyclopts import Parameter

from legion_p2p.cli.common import at_least
from legion_p2p.cli.failures import DONE
from legion_p2p.cli.output import print_json, progress_bar
from legion_p2p.cli.sim_options import AsJsonLine


def dht(  # noqa: PLR0913 (each is an option)
    *,
    nodes: Annotated[int, Parameter(validator=at_least(2))] = 100_000,
    minutes: Annotated[float, Parameter(validator=at_least(1))] = 60.0,
    session: Annotated[float, Parameter(validator=at_least(0))] = 60.0,
    share: float = 0.1,
    run_size: Annotated[int, Parameter(validator=at_least(1))] = 50,
    searches: Annotated[int, Parameter(validator=at_least(0))] = 1000,
    seed: Annotated[int, Parameter(validator=at_least(0))] = 0,
    quiet: Annotated[bool, Parameter(negative=())] = False,
    json: AsJsonLine = False,
) -> int:
    """Model the DHT by which peers find their runs: how many questions a search takes, and whether it finds anybody.

    Example: legion-sim dht --nodes 20000 --session 10

    Parameters
    ----------
    nodes
        How many there are at any time.
    minutes
        Virtual ones, of which the last quarter is measured.
    session
        Minutes that a node stays, median; another one comes in its place. 0: all stay.
    share
        Of nodes that are in a run, and announce that.
    run_size
        Nodes of one run.
    searches
        That are measured: by any node, for any run.
    seed
        Of everything that is random.
    quiet
        Show no progress.
    json
        Print only the figures, as a line of JSON.
    """
    from legion_p2p.observe.human import percent_text, seconds_text, whole_text
    from legion_p2p.scenarios.dht_model import TICK_S, DhtModel, DhtSettings

    settings = DhtSettings(
        n_nodes=nodes, duration_s=60 * minutes, session_s=60 * session, provider_share=share, run_size=run_size,
        n_searches=searches,
    )  # fmt: skip
    with progress_bar("DHT", int(settings.duration_s / TICK_S), quiet or json) as advance:
        figures = DhtModel(settings, seed).run(lambda now: advance(1))
    if json:
        return print_json(figures)
    print(
        f"{whole_text(nodes)} nodes, {seconds_text(settings.duration_s)} in {seconds_text(figures.wall_s)}; "
        f"{whole_text(figures.n_gone)} went, and others came; a node knows {figures.n_known:.0f} others"
    )
    print(
        f"  {whole_text(figures.n_searches)} searches: {percent_text(figures.success)} found somebody, by "
        f"{figures.search_hops:.2f} answers one after the other; {figures.search_questions:.1f} questions in "
        f"{figures.search_s:.1f} s"
    )
    print(
        f"  lookups of where to announce: {figures.lookup_questions:.1f} questions; {percent_text(figures.exact)} came to the "
        "closest node of all"
    )
    return DONE
