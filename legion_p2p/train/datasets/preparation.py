"""What is asked of a preparation, and what has come of it."""

import msgspec

from legion_p2p.errors import UsageError
from legion_p2p.train.datasets.token_shards import WrittenShard

DEFAULT_VALIDATION = 0.05


class Preparation(msgspec.Struct, frozen=True):
    """What is prepared, and how. Equal values give equal data sets."""

    sources: tuple[str, ...]
    weights: tuple[float, ...] = ()
    """Shares of the tokens, one for each source; empty: all of every source. What is too much of a source is left out."""
    field: str = "text"
    """Of a row, in JSON lines and tables."""
    validation: float = DEFAULT_VALIDATION
    """Share of the documents that is held back, chosen by their content."""
    skip_broken: bool = False
    end_of_text: str = ""
    """The token after each document; empty: the one that the tokenizer has for it."""

    def check(self) -> None:
        """Raises: UsageError."""
        if not self.sources:
            raise UsageError("nothing to prepare: name files or folders")
        if self.weights and (len(self.weights) != len(self.sources) or min(self.weights) <= 0):
            raise UsageError(f"{len(self.weights)} weights for {len(self.sources)} sources: give one above 0 for each")
        if not 0 <= self.validation < 1:
            raise UsageError(f"a validation share of {self.validation}, must be 0 or more and below 1")


class Prepared(msgspec.Struct, frozen=True):
    """What came of it."""

    cid: str
    n_tokens: int
    n_validation: int
    n_shards: int
    n_documents: int
    n_broken: int
    """Rows that were left out because they could not be read."""
    left_out: str
    """Files that are no text, in words."""


class PreparedPart(msgspec.Struct, frozen=True):
    """What one task has written."""

    n_documents: int
    n_broken: int
    train: tuple[WrittenShard, ...]
    validation: tuple[WrittenShard, ...]
