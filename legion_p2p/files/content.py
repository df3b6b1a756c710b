"""What is in a file, by its first bytes: for messages that say what was given instead of what was expected."""

GIT_LFS = "a git-lfs pointer, not the file itself (`git lfs pull` fetches that)"
SAFETENSORS = "a file of safetensors"
COMPRESSED = ("gzip", "zstandard", "bzip2", "xz")
PROBE_BYTES = 8192  # of a file; git decides from as many whether it is text

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstandard"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"PK\x03\x04", "a zip archive, or a file that torch.save wrote"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF-", "a PDF document"),
    (b"PAR1", "a Parquet table"),
    (b"ARROW1\x00\x00", "an Arrow table"),
    (b"OggS", "an Ogg recording"),
    (b"ID3", "an MP3 recording"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"LGTOKENS", "a .bin of token ids"),
    (b"GGUF", "a GGUF model"),
    (b"version https://git-lfs.github.com/spec/", GIT_LFS),
)
_UTF16 = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
_UTF32 = {b"\xff\xfe\x00\x00": "utf-32-le", b"\x00\x00\xfe\xff": "utf-32-be"}
UTF8_MARK = b"\xef\xbb\xbf"


def format_of(head: bytes) -> str | None:
    """A format that is not plain text, by its first bytes, as a message names it; None where nothing is recognized."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[:4] == b"RIFF" and head[8:12] in (b"WAVE", b"WEBP", b"AVI "):
        return "a recording or an image (RIFF)"
    if head[4:8] == b"ftyp":
        return "a recording (MP4)"
    if head[:2] == b"\x80\x02" or (head[:1] == b"\x80" and head[1:2] in (b"\x03", b"\x04", b"\x05")):
        return "a pickle"
    if len(head) > 9 and 2 <= int.from_bytes(head[:8], "little") <= 100 << 20 and head[8:9] == b"{" and b"\0" in head[:8]:
        return SAFETENSORS
    if b"eroots" in head[:16]:
        return "a CAR file"
    return None


def wide_encoding_of(head: bytes) -> str | None:
    """The encoding of a text of two or four bytes a character, by its mark or by where its zero bytes are; None: neither."""
    for marks in (_UTF32, _UTF16):
        for mark, encoding in marks.items():
            if head.startswith(mark):
                return encoding
    even, odd = head[::2], head[1::2]
    if len(head) >= 16 and b"\0" not in even and odd.count(0) > 0.8 * len(odd):
        return "utf-16-le"
    if len(head) >= 16 and b"\0" not in odd and even.count(0) > 0.8 * len(even):
        return "utf-16-be"
    return None


def is_binary(head: bytes) -> bool:
    """True for what is no text: a known format, or a zero byte where no wide encoding explains it."""
    return format_of(head) is not None or (b"\0" in head and wide_encoding_of(head) is None)


def description_of(head: bytes) -> str:
    """What a message calls content that was not expected."""
    if not head:
        return "empty"
    found = format_of(head)
    if found is not None:
        return found
    wide = wide_encoding_of(head)
    if wide is not None:
        return f"text in {wide.upper()}"
    return "binary data of no known format" if b"\0" in head else "plain text"


def decode_text(raw: bytes) -> str:
    """Text that a person wrote in any usual editor: UTF-8, or UTF-16 or UTF-32 with its mark; without that mark.

    Raises: ValueError, saying what it is instead.
    """
    head = raw[:PROBE_BYTES]
    found = format_of(head)
    if found is not None:
        raise ValueError(f"it is {found}, not text")
    wide = wide_encoding_of(head)
    try:
        text = raw.decode(wide or "utf-8")
    except UnicodeDecodeError as bad:
        raise ValueError(f"it is not text in UTF-8: byte {bad.start} is 0x{raw[bad.start]:02x}; save it as UTF-8") from bad
    if "\0" in text:
        raise ValueError("it is binary data, not text")
    return text.removeprefix("\ufeff")
