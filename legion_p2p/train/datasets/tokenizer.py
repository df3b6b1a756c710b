"""Tokenizers: bytes as they are, or a tokenizer.json of the library tokenizers; and training one."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np

from legion_p2p.core.dataset import MAX_TOKENIZER_BYTES, MAX_VOCABULARY
from legion_p2p.errors import StoreError, UsageError
from legion_p2p.files.paths import FileKind, kind_of, shown, user_path
from legion_p2p.files.reading import read_limited
from legion_p2p.train.tokens import DTYPES, TokenArray, TokenType

BYTE_VOCABULARY = 256
BYTES = "bytes"
"""What names the tokenizer whose tokens are bytes."""
TOKENIZER_FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
"""What common tokenizers call the token after a document; the first that there is."""
MIN_TRAINED_VOCABULARY = 257  # every byte, and the end of a document
MAX_TRAINED_VOCABULARY = 1 << 20
NO_TOKENIZERS = 'tokenizers are read by the library tokenizers, which is not installed here: pip install "legion_p2p[data]"'


class Tokenizer:
    """Text to token ids. `raw` is its tokenizer.json; empty where tokens are bytes."""

    def __init__(self, raw: bytes = b"", where: str = BYTES, end: str = "") -> None:
        """`end`: the token after each document; empty: what KNOWN_ENDS says. Raises: StoreError; UsageError."""
        self.raw = raw
        self._where = where
        self._made: Any = _made(raw, where) if raw else None
        self.vocab_size = BYTE_VOCABULARY if self._made is None else _vocab_size(self._made, where)
        self.end_of_text = self._id_of_end(end)
        self.dtype: TokenType = next(dtype for size, dtype in DTYPES.items() if self.vocab_size <= 256**size)

    @property
    def end_text(self) -> str:
        """The token after a document, as text; empty: there is none."""
        return "" if self._made is None or self.end_of_text is None else str(self._made.id_to_token(self.end_of_text))

    def encode(self, texts: Sequence[str]) -> list[TokenArray]:
        """The tokens of each text, without any that are not of the text itself."""
        if self._made is None:
            return [np.frombuffer(text.encode(), np.uint8) for text in texts]
        found = self._made.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self.ids(one.ids) for one in found]

    def ids(self, ids: Sequence[int]) -> TokenArray:
        """These ids in the type that tokens are written in."""
        return cast(TokenArray, np.array(ids, self.dtype))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these tokens."""
        if self._made is None:
            return bytes(ids).decode(errors="replace")
        text: str = self._made.decode(list(ids))
        return text

    def _id_of_end(self, end: str) -> int | None:
        if self._made is None:
            if end:
                raise UsageError(f"tokens that are bytes have no {end!r}: documents are separated by a zero byte")
            return 0
        found = next((i for name in ((end,) if end else KNOWN_ENDS) if (i := self._made.token_to_id(name)) is not None), None)
        if end and found is None:
            raise UsageError(f"{self._where} has no token {end!r} to end documents with")
        return found


def read_tokenizer(name: str, end: str = "") -> Tokenizer:
    """`bytes`, a tokenizer.json, or a folder with one. Raises: StoreError, naming the file and what is wrong; UsageError."""
    if name == BYTES:
        return Tokenizer(end=end)
    path = user_path(name)
    if kind_of(path) is FileKind.FOLDER:
        path = path / TOKENIZER_FILE
    if kind_of(path) is FileKind.MISSING:
        raise StoreError(f"{shown(path)} does not exist: give a tokenizer.json, a folder with one, or {BYTES}")
    return Tokenizer(read_limited(path, MAX_TOKENIZER_BYTES), shown(path), end)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> bytes:
    """The tokenizer.json of a byte-level BPE over these texts, as GPT-2's is one. Raises: UsageError."""
    if not MIN_TRAINED_VOCABULARY <= vocab_size <= MAX_TRAINED_VOCABULARY:
        raise UsageError(f"a vocabulary of {vocab_size}, must be {MIN_TRAINED_VOCABULARY} to {MAX_TRAINED_VOCABULARY}")
    library = _library()
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    made.post_processor = library.processors.ByteLevel(trim_offsets=False)
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(texts, trainer)
    return str(made.to_str(pretty=False)).encode()


def tokenizer_config(tokenizer: Tokenizer, context: int) -> dict[str, Any]:
    """The tokenizer_config.json with which transformers loads it."""
    end = tokenizer.end_text or None
    return {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end, "model_max_length": context,
            "clean_up_tokenization_spaces": False}  # fmt: skip


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as bad:
        raise UsageError(NO_TOKENIZERS) from bad
    return tokenizers


def _made(raw: bytes, where: str) -> Any:
    library = _library()
    try:
        text = raw.decode()
        if not isinstance(json.loads(text), dict):
            raise ValueError("it is JSON, but no table of fields")
        return library.Tokenizer.from_str(text)
    except Exception as bad:  # the library raises nothing more special
        raise StoreError(f"{where} is no tokenizer that the library tokenizers {library.__version__} reads: {bad}") from bad


def _vocab_size(made: Any, where: str) -> int:
    """One more than the largest id: some have gaps."""
    ids = made.get_vocab(with_added_tokens=True).values()
    largest = max(ids, default=-1)
    if not 0 <= largest < MAX_VOCABULARY:
        raise StoreError(f"{where} has {len(ids)} tokens with ids up to {largest}, must be 1 to {MAX_VOCABULARY} tokens")
    return int(largest) + 1
