"""Text that nobody has prepared, as what a trainer reads: `--data stream:SOURCE`.

Each peer reads its own part of the sources as it trains (train/datasets/stream.py). One document in twenty, by its hash, is held
back: nobody trains on it, and the first of these are what the model is evaluated on, the same at all peers.
"""

import hashlib
from collections.abc import Iterator

import msgspec

from legion_p2p.config import NewRun
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import StoreError, UsageError
from legion_p2p.train.companions import checked_tokenizer, tokenizer_cid
from legion_p2p.train.corpus import Corpus
from legion_p2p.train.datasets.documents import Reading, Text, texts_of
from legion_p2p.train.datasets.prepared import with_data, with_vocabulary
from legion_p2p.train.datasets.source_names import is_stream, sources_in, stream_name
from legion_p2p.train.datasets.sources import find_sources
from legion_p2p.train.datasets.streamed import StreamedText
from legion_p2p.train.datasets.tokenizer import BYTES, read_tokenizer
from legion_p2p.train.evaluation import FINAL_EVAL_WINDOWS
from legion_p2p.train.tokens import TokenArray

FIELD = "text"  # of rows: where the data sets that people stream have it
HELD_OUT_OF = 20
MAX_LOOKED_AT_CHARS = 1 << 28  # for what is held back: in the first 256 MB there are hundreds of documents, or they are very long


def check_tokenizer_use(data: str, tokenizer: str) -> None:
    """Raises: UsageError, if a tokenizer is given for text that is not streamed."""
    if tokenizer and not is_stream(data):
        raise UsageError("--tokenizer: only for text that is streamed, as --data stream:SOURCE; prepared data has its own")


def with_text(new_run: NewRun, data: str, tokenizer: str) -> NewRun:
    """A run to create, which trains on `data`: its model gets the vocabulary, and it names the tokenizer. Raises: UsageError."""
    if not is_stream(data):
        check_tokenizer_use(data, tokenizer)
        return with_data(new_run, data)
    used = read_tokenizer(tokenizer or BYTES)
    return msgspec.structs.replace(with_vocabulary(new_run, used.vocab_size), tokenizer=tokenizer_cid(used.raw))


def open_stream(spec: RunSpec, data: str, tokenizer: str, context: int) -> Corpus:
    """The text behind `data`, of which only what is held back is read now.

    Raises: UsageError, if the run has another tokenizer; StoreError, if a source cannot be read, or holds too little.
    """
    if spec.tokenizer and not tokenizer:
        raise UsageError(f"run {spec.name!r} has the tokenizer {spec.tokenizer}: give it with --tokenizer FILE")
    if tokenizer:
        checked_tokenizer(spec, tokenizer)
    used = read_tokenizer(tokenizer or BYTES)
    sources = find_sources(sources_in(data), FIELD)
    text = StreamedText(sources, used)
    validation = _held_out_tokens(text, FINAL_EVAL_WINDOWS * (context + 1))
    if len(validation) < context + 1:
        raise StoreError(
            f"{data}: {len(validation)} tokens are held back (one document in {HELD_OUT_OF}), context {context} needs one more: "
            "give more or longer documents, or prepare the text"
        )
    digest = hashlib.sha256(repr((stream_name(data), used.vocab_size)).encode() + validation.tobytes()).digest()
    return Corpus(
        stream_name(data), validation, validation, used.vocab_size, digest, sources.left_out, streamed=text
    )  # nobody trains on `train`: the reader takes the stream


def reading() -> Reading:
    """How documents are read: rows that are broken are left out, because nobody looked at them before."""
    return Reading(FIELD, skip_broken=True)


def is_held_out(text: str) -> bool:
    """Whether nobody trains on a document, by its first thousand characters."""
    return int.from_bytes(hashlib.sha256(text[:1000].encode(errors="replace")).digest()[:8], "big") % HELD_OUT_OF == 0


def _held_out_tokens(text: StreamedText, n: int) -> TokenArray:
    """The first `n` tokens that are held back, or as many as there are."""
    found: list[int] = []
    end = [] if text.tokenizer.end_of_text is None else [text.tokenizer.end_of_text]
    for one in _first_texts(text):
        if is_held_out(one.text):
            (tokens,) = text.tokenizer.encode([one.text])
            found += [*tokens.tolist(), *(end if one.ends else ())]
        if len(found) >= n:
            break
    return text.tokenizer.ids(found[:n])


def _first_texts(text: StreamedText) -> Iterator[Text]:
    """Documents from the beginning on, until enough is looked at."""
    n_read = 0
    for task in text.sources.tasks:
        for piece in task.pieces:
            for one in texts_of(piece, reading()):
                yield one
                n_read += len(one.text)
                if n_read >= MAX_LOOKED_AT_CHARS:
                    return
