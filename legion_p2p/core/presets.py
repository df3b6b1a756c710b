"""How a new run averages, by what its members' connections carry: the best that was measured (docs/records/convergence.md).

Local steps, codecs and inner optimizer belong together: sparse pushes want frequent rounds, a high rate, and Muon inside.
"""

from typing import Any, Literal

Links = Literal["lan", "fibre", "cable", "dsl"]

DEFAULT_LINKS: Links = "cable"

_MUON = {"optimizer": "muon", "learning_rate": 0.02}
_ACROSS = {"cross_every": 1, "cross_codec": "topk512-2bit"}  # often and sparse: docs/records/regions.md

LINKS: dict[str, dict[str, dict[str, Any]]] = {
    "lan": {"round": {"local_steps": 2, "push_codec": "int8", "update_codec": "int8"}, "inner": _MUON},
    "fibre": {
        "round": {
            "local_steps": 5,
            "push_codec": "topk512-2bit",
            "push_codecs": ("int4", "topk256-2bit", "topk128-2bit"),
            "update_codec": "topk1024-4bit",
            "update_codecs": ("int4", "topk512-2bit"),
            "feedback_decay": 0.95,
            **_ACROSS,
        },
        "inner": _MUON,
    },
    "cable": {
        "round": {
            "local_steps": 5,
            "push_codec": "topk512-2bit",
            "push_codecs": ("topk256-2bit", "topk128-2bit", "topk64-2bit"),
            "update_codec": "topk512-2bit",
            "update_codecs": ("topk1024-4bit", "topk256-2bit"),
            "feedback_decay": 0.95,
            **_ACROSS,
        },
        "inner": _MUON,
    },
    "dsl": {
        "round": {
            "local_steps": 5,
            "push_codec": "topk128-2bit",
            "push_codecs": ("topk256-2bit", "topk64-2bit", "topk32-2bit"),
            "update_codec": "topk512-2bit",
            "update_codecs": ("topk256-2bit", "topk128-2bit"),
            "feedback_decay": 0.95,
            **_ACROSS,
        },
        "inner": _MUON,
    },
}
"""Fields of RoundSpec and InnerSpec that differ from their defaults. lan: a gigabit and a millisecond; fibre: 100 Mbit/s up and
more; cable: about 20; dsl: about 5."""
