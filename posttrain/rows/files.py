"""Reads text files that people made: UTF-8, plain or compressed.

path -> lines; whatever is wrong with a file is one ValueError with its name, the place and the remedy

What a file is says its content, not its name: a download may have lost its `.gz`, and a bucket may serve one unpacked.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
OTHERS = {  # first bytes -> what has them, what to do
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"BZh": ("bzip2", "unpack it, or use gzip or zstd"),
    b"\xfd7zXZ\x00": ("xz", "unpack it, or use gzip or zstd"),
    b"PAR1": ("Parquet", "name it .parquet"),
    b"\xff\xfe": ("UTF-16", "convert the file to UTF-8"),
    b"\xfe\xff": ("UTF-16", "convert the file to UTF-8"),
    b"version https://git-lfs": ("a pointer of Git LFS", "fetch the file itself with git lfs pull"),
}


def lines_of(path: str | Path, *, name: str) -> Iterator[str]:
    """Yields the lines of a UTF-8 file, which may be gzip'd or zstd'd, with their line feeds.

    Raises:
        ValueError: it cannot be read so; names the file and, where it has one, the line.
    """
    try:
        with _readable(name), _open(path, name=name) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as text:
            yield from text
    except UnicodeDecodeError:
        line, position = _first_bad(path, name=name)
        raise ValueError(f"{name}: line {line}: not UTF-8 at byte {position}: convert the file to UTF-8") from None


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Names the file in an error of the disk or of what unpacks it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(f"{name}: cannot be read, {error.strerror}: check the path") from error
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{name}: cannot be decompressed, {reason}: is it cut off? Compress it again") from error


def check_columns(columns: list[str], *, name: str) -> None:
    """Refuses a table with a column that is there twice: a row could have only one of them."""
    twice = next((column for at, column in enumerate(columns) if column in columns[:at]), None)
    if twice is not None:
        raise ValueError(f"{name}: the column {twice!r} appears twice, and only one would count: remove or rename one")


def read_text(path: str | Path, *, name: str) -> str:
    return "".join(lines_of(path, name=name))


def _open(path: str | Path, *, name: str) -> BinaryIO:
    """Opens a file so that it reads unpacked; raises ValueError for what is no text, packed or not."""
    with open(path, "rb") as file:
        start = file.read(max(map(len, OTHERS)))
    for magic, (what, remedy) in OTHERS.items():
        if start.startswith(magic):
            raise ValueError(f"{name}: is {what}, not text: {remedy}")
    if start.startswith(GZIP):
        return gzip.open(path)
    return _open_zstd(path) if start.startswith(ZSTD) else open(path, "rb")


def _open_zstd(path: str | Path) -> BinaryIO:
    """Opens a zstd'd file with pyarrow, which is there for Parquet; Python has zstd from 3.14 on."""
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


def _first_bad(path: str | Path, *, name: str) -> tuple[int, int]:
    """Returns line, from 1, and position of the first byte that is not UTF-8."""
    decoder, position, line = codecs.getincrementaldecoder("utf-8")(), 0, 1
    with _readable(name), _open(path, name=name) as file:
        while True:
            block, held_back = file.read(1 << 20), len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                good = error.start - held_back
                return line + block[: max(good, 0)].count(b"\n"), position + good
            position, line = position + len(block), line + block.count(b"\n")
