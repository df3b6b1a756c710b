"""Suggestions for an unknown option, or for words that belong to no option."""

import shlex
from collections.abc import Sequence

from cyclopts import CycloptsError, UnknownOptionError, UnusedCliTokensError

from legion_p2p.config.old_names import FLAGS

PEER_COMMAND = "legion-peer"

SYNONYMS = {
    "--address": "--initial-peers",
    "--bootstrap": "--initial-peers",
    "--bootstrap-peers": "--initial-peers",
    "--create": "--new-run",
    "--found": "--new-run",
    "--gpu": "--device",
    "--join": "--run",
    "--key": "--identity",
    "--key-file": "--identity",
    "--max-steps": "--steps",
    "--architecture": "--model",
    "--name": "--run",
    "--peer": "--initial-peers",
    "--peers": "--initial-peers",
    "--run-id": "--run",
    "--run-name": "--run",
    "--upload-limit": "--upload",
    "--download-limit": "--download",
}
"""Other names that people use for options of legion-peer, where the most similar spelling is another option."""

_DASHES = "‐‑‒–—―−"  # what word processors make of two hyphens


def meant(command: str, bad: CycloptsError) -> str | None:
    """The message for a mistake; None where that of cyclopts is good enough."""
    if isinstance(bad, UnusedCliTokensError) and bad.unused_tokens:
        return _of_words(command, bad.unused_tokens)
    if isinstance(bad, UnknownOptionError):
        return _of_option(command, bad.token.keyword or bad.token.value, bad.token.source)
    return None


def _of_option(command: str, written: str, source: str) -> str | None:
    name = "--" + written.partition("=")[0].strip("-[]").replace("_", "-")
    where = "" if source in ("", "cli") else f" in {source}"
    if command == PEER_COMMAND and name in FLAGS:
        new = FLAGS[name]
        return f"{written}{where} is called {new if written.startswith('-') else new[2:]} now"
    if command == PEER_COMMAND and name in SYNONYMS:
        return f"unknown option: {written}{where}; did you mean {SYNONYMS[name]}?"
    return None


def _of_words(command: str, words: Sequence[str]) -> str:
    dashed = next((word for word in words if word[0:1] and word[0] in _DASHES), None)
    if dashed is not None:
        return f"{dashed!r} begins with a character that is not the hyphen of options: write --{dashed.lstrip(_DASHES + '-')}"
    told = f"no option takes {' '.join(map(repr, words))}"
    if command != PEER_COMMAND:
        return told
    addresses = [word for word in words if word.startswith(("/ip4/", "/ip6/", "/dns", "@"))]
    names = [word for word in words if word not in addresses]
    options: list[str] = []
    if len(names) == 1:
        options += ["--new-run" if names[0].endswith(".toml") else "--run", names[0]]
    if addresses:
        options += ["--initial-peers", *addresses]
    return told if len(names) > 1 else f"{told}: did you mean {shlex.join(options)}?"
