"""How a new run averages, by what its members' connections carry: the best that was measured (docs/records/convergence.md and
docs/records/learning.md).

Where nothing is said ("auto") pushes are dense while the connections carry it, and sparse where they do not; rounds are frequent
at first; and the mean of the pushes is as long as the pushes. That suits the optimizer and the rate that somebody brings. The
others are for connections that are known: sparse pushes want frequent rounds, a high rate, and Muon inside.
"""

from typing import Any, Literal

Links = Literal["auto", "lan", "fibre", "cable", "dsl"]

DEFAULT_LINKS: Links = "auto"

_MUON = {"optimizer": "muon", "learning_rate": 0.02}


def _sparse(pushes: tuple[str, ...], updates: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The first codecs, and those that may take their place; between regions often and sparse: docs/records/regions.md."""
    codecs = {"push_codec": pushes[0], "push_codecs": pushes[1:], "update_codec": updates[0], "update_codecs": updates[1:]}
    across = {"sync_every": 1, "sync_codec": "topk512-2bit"}
    return {"round": {"local_steps": 5, **codecs, "feedback_decay": 0.95, **across}, "inner": _MUON}


LINKS: dict[str, dict[str, dict[str, Any]]] = {
    "auto": {
        "round": {
            "local_steps": 5,
            "ramp_steps": 200,
            "restore_length": 1.0,
            "push_codec": "int8",
            "push_codecs": ("int4", "topk512-2bit", "topk256-2bit", "topk128-2bit", "topk64-2bit"),
            "update_codec": "int8",
            "update_codecs": ("int4", "topk1024-4bit", "topk512-2bit", "topk256-2bit"),
            "feedback_decay": 0.95,
            "sync_codecs": ("topk512-2bit",),
        },
        "inner": _MUON,
    },
    "lan": {"round": {"local_steps": 2, "push_codec": "int8", "update_codec": "int8"}, "inner": _MUON},
    "fibre": _sparse(
        ("topk512-2bit", "int4", "topk256-2bit", "topk128-2bit"),
        ("topk1024-4bit", "int4", "topk512-2bit"),
    ),
    "cable": _sparse(
        ("topk512-2bit", "topk256-2bit", "topk128-2bit", "topk64-2bit"),
        ("topk512-2bit", "topk1024-4bit", "topk256-2bit"),
    ),
    "dsl": _sparse(
        ("topk128-2bit", "topk256-2bit", "topk64-2bit", "topk32-2bit"),
        ("topk512-2bit", "topk256-2bit", "topk128-2bit"),
    ),
}
"""Fields of RoundSpec and InnerSpec that differ from their defaults. auto: whatever they carry; lan: a gigabit and
a millisecond; fibre: 100 Mbit/s up and more; cable: about 20; dsl: about 5."""
