"""What text is called: data sets of a hub, and sources that are streamed."""

from legion_p2p.files.paths import shown, user_path

HUB = "hf:"
"""Begins the name of a data set of the library datasets, as its hub knows it, or a folder in the same layout."""
STREAM = "stream:"
"""Begins what `--data` says of sources that are read as they are trained on."""


def is_stream(data: str) -> bool:
    """Whether `data`, as `--data` has it, is text to be streamed."""
    return data.startswith(STREAM)


def sources_in(data: str) -> tuple[str, ...]:
    """The sources that are to be streamed."""
    return tuple(data.removeprefix(STREAM).split(","))


def stream_name(data: str) -> str:
    """What others learn of it: of a file or folder its name, without where it is on this disk."""
    return STREAM + ",".join(name if name.startswith(HUB) else shown(user_path(name).resolve().name) for name in sources_in(data))
