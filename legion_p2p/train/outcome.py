"""What came of one `legion-peer`."""

import msgspec


class Outcome(msgspec.Struct, frozen=True):
    """How it ended.

    `reason` is "steps", "minutes" or "stopped"; "finished", where its user asked it to finish; "target", where the run has come
    to its target; "together", where a helper served until all were done; "data", where the text could no longer be read; or
    "memory", where there was too little of it.
    """

    steps: int
    tokens: int
    val_loss: float | None
    digest: str
    reason: str
    sent_bytes: int = 0
    received_bytes: int = 0
    blocked_fraction: float = 0.0
    saved_to: str = ""
    """File of the model; empty: it is in none that was asked for."""
    save_problem: str = ""
    """Why it is not where it was asked for, and where it is."""
    text_problem: str = ""
    """Why the text could not be read any more."""
    connected: tuple[str, ...] = ()
    """Ids of the peers that this one was connected to at the end."""
    memory_problem: str = ""
    """Why the memory did not suffice, and what takes less."""
    average_val_loss: float | None = None
    """Of the average of the common model over the last part of the run; None: none was kept."""
    average_saved_to: str = ""
    """File of that average; empty: the common model is as good, or no folder was given."""
    best_val_loss: float | None = None
    """Of the common model that evaluations while training found best; None: none was kept."""
    best_saved_to: str = ""
    """File of that model; empty: the last one is as good, or no folder was given."""
    mfu: float | None = None
    """Model FLOPs utilisation; None where nobody knows what the device can do."""
