"""Text that is read as it is trained on."""

from dataclasses import dataclass

from legion_p2p.train.datasets.sources import Sources
from legion_p2p.train.datasets.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class StreamedText:
    """Where it comes from, and how it becomes tokens."""

    sources: Sources
    tokenizer: Tokenizer
