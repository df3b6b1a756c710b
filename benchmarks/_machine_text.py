"""A large text that a machine without a connection has: source and documentation below its Python installation, as tokens."""

import hashlib
import json
import os
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np

ENDINGS = (".py", ".pyi", ".md", ".rst", ".txt", ".h", ".hpp", ".cuh")
MOST_OF_A_FILE = 1 << 20  # bytes; longer ones are tables
TO_LEARN_FROM = 12_000_000  # bytes that the vocabulary is made of
VALIDATION_SHARE = 0.02
BATCH = 512  # files that are encoded at a time


def chosen(root: Path, most_bytes: int) -> list[Path]:
    """Files below `root` in an order of their names' hashes, up to `most_bytes` in all."""
    found = []
    for folder, _, names in os.walk(root):
        found += [Path(folder, name) for name in names if name.endswith(ENDINGS)]
    found.sort(key=lambda path: hashlib.sha1(str(path.relative_to(root)).encode()).digest())
    kept, total = [], 0
    for path in found:
        try:
            size = path.stat().st_size
        except OSError:
            continue
        if 0 < size <= MOST_OF_A_FILE:
            kept.append(path)
            total += size
        if total >= most_bytes:
            break
    return kept


def read(paths: list[Path]) -> list[str]:
    """What they hold; each text once, however many files have it."""
    seen, texts = set(), []
    for path in paths:
        try:
            data = path.read_bytes()
            digest = hashlib.sha1(data).digest()
            if digest not in seen:
                seen.add(digest)
                texts.append(data.decode())
        except (OSError, UnicodeDecodeError):
            continue
    return texts


def prepare(folder: Path, most_bytes: int, vocab_size: int, root: Path | None = None, most_s: float = 45.0) -> dict[str, Any]:
    """Write train.npy and validation.npy (uint16) and text.json into `folder`; what the text is.

    Nothing, if they are there. What is not encoded after `most_s` is left out.
    """
    ready = folder / "text.json"
    if ready.exists():
        there: dict[str, Any] = json.loads(ready.read_text())
        return there
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    root = root or Path(sysconfig.get_paths()["purelib"])
    texts = read(chosen(root, most_bytes))
    n_held_out = max(1, int(len(texts) * VALIDATION_SHARE))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[end], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    sample, total = [], 0
    for text in texts[n_held_out:]:
        sample.append(text)
        total += len(text)
        if total >= TO_LEARN_FROM:
            break
    tokenizer.train_from_iterator(sample, trainer)
    learned_s = time.monotonic() - began
    made: dict[str, int] = {}
    encoded: dict[str, int] = {}
    for name, part in (("validation", texts[:n_held_out]), ("train", texts[n_held_out:])):
        tokens: list[np.ndarray[Any, Any]] = []
        n_files = 0
        for start in range(0, len(part), BATCH):
            for encoding in tokenizer.encode_batch_fast(part[start : start + BATCH]):
                tokens.append(np.array([*encoding.ids, 0], np.uint16))
            n_files += len(part[start : start + BATCH])
            if time.monotonic() - began > most_s:
                break
        whole = np.concatenate(tokens)
        np.save(folder / f"{name}.npy", whole)
        made[name], encoded[name] = len(whole), n_files
    told = {
        "root": str(root), "python": sys.version.split()[0], "files": len(texts), "encoded": encoded,
        "characters": sum(map(len, texts)),
        "vocabulary": tokenizer.get_vocab_size(), "tokens": made, "learned_s": round(learned_s, 1),
        "took_s": round(time.monotonic() - began, 1),
    }  # fmt: skip
    half = folder / "text.json.part"
    half.write_text(json.dumps(told, indent=1))
    half.rename(ready)
    return told
