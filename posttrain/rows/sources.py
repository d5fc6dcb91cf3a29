"""Reads the raw rows of a data set from this machine, gs://, s3:// or the Hub.

path, gs://, s3:// (JSONL, JSON, CSV, Parquet) or Hub id -> dicts, one after the other, in order; digest, commit
"""

import csv
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import storage
from posttrain.rows.formats import JsonLines, lines_of, read_text, shown
from posttrain.step import digests

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
COMMIT = re.compile(r"[0-9a-f]{40}")
NUM_BATCH_ROWS = 1 << 10  # rows of Parquet read at once
MAX_CELL_CHARS = 1 << 24  # Python's default of 131,072 is shorter than some conversations


@dataclass(frozen=True)
class DataSet:
    """The rows of a data set, which each iteration reads anew, and where they come from."""

    rows: Iterable[dict]
    digest: str  # SHA-256 of the file; on the Hub, of the rows as JSON Lines
    commit: str = ""  # on the Hub


@dataclass(frozen=True)
class RowFile:
    """The rows of a local file, whose address for messages is `name`.

    Iterating raises ValueError, naming the file and its line or row.
    """

    path: Path
    name: str

    def __iter__(self) -> Iterator[dict]:
        rows, has_rows = READERS[self.path.suffix.lower()](self.path, name=self.name), False
        for row in rows:
            has_rows = True
            yield row
        if not has_rows:
            raise ValueError(f"{self.name}: holds no rows: give a data set with at least one row")


def read_rows(uri: str) -> list[dict]:
    """Reads all rows of `uri`."""
    with open_data_set(uri) as data_set:
        return [*data_set.rows]


@contextmanager
def open_data_set(uri: str, *, hub_subset: str | None = None, hub_split: str = "train") -> Iterator[DataSet]:
    """Opens a file, or the data set `owner/name[@revision]` on the Hub.

    Raises:
        ValueError: it is missing, unreadable or in no known format.
        ConnectionError: the Hub does not answer.
    """
    place = storage.kind(uri)
    if place == "hub" and Path(uri).suffix not in SUFFIXES:
        yield _read_hub(uri, subset=hub_subset, split=hub_split)
    elif place in ("gs", "s3"):
        with _downloaded(uri) as (path, sha256):
            yield _read_file(path, sha256, name=uri)
    else:
        path = Path(uri) if place == "hub" else storage.local_path(uri)
        if path.is_dir():
            raise ValueError(f"{uri}: is a folder: give one file ({', '.join(SUFFIXES)})")
        if not path.is_file():
            raise ValueError(f"{uri}: no such file: give a path, gs://, s3:// or a Hub id owner/name")
        yield _read_file(path, digests.digest(path), name=uri)


def _read_file(path: Path, sha256: str, *, name: str) -> DataSet:
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{name}: unknown file format {path.suffix.lower()!r}: use one of {', '.join(SUFFIXES)}")
    return DataSet(RowFile(path, name), sha256)


@contextmanager
def _downloaded(uri: str) -> Iterator[tuple[Path, str]]:
    """Downloads a file for the length of the block; yields its path and SHA-256."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, uri.rsplit("/", 1)[-1])
        try:
            sha256 = storage.download_file(uri, path)
        except FileNotFoundError as error:
            raise ValueError(f"{uri}: no such object: check the address") from error
        yield path, sha256


def _read_hub(uri: str, *, subset: str | None, split: str) -> DataSet:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    name, revision = storage.hub_id(uri)
    try:
        dataset = load_dataset(name, subset, split=split, revision=revision)
    except ConnectionError as error:
        raise ConnectionError(
            f"{uri}: no such file, and the Hub does not answer: check the path, or try again"
        ) from error
    except (DatasetNotFoundError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{uri}: neither a file nor loadable from the Hub (subset {subset}, split {split}), {reason}: "
            "check the id, data.hub_subset and data.hub_split"
        ) from error
    digest = hashlib.sha256()
    for row in dataset:
        digest.update((json.dumps(row, default=str) + "\n").encode())
    return DataSet(dataset, digest.hexdigest(), _commit(dataset))


def _commit(dataset: Any) -> str:
    """Returns the commit that was loaded. Only the name of the folder of cached rows has it, online and offline."""
    folders = {Path(file["filename"]).parent.name for file in dataset.cache_files}
    return next((name for name in folders if COMMIT.fullmatch(name)), "")


def _read_json(path: Path, *, name: str) -> list[dict]:
    """Reads the whole list at once. JSON Lines or Parquet are better for large data sets."""
    try:
        rows = json.loads(read_text(path, name=name))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name}: line {error.lineno}: not valid JSON, {error.msg} at column {error.colno}: repair the file; "
            "is it cut off, or JSON Lines under the name .json?"
        ) from None
    except RecursionError:
        raise ValueError(f"{name}: JSON that is nested too deep: flatten the rows") from None
    if not isinstance(rows, list):
        raise ValueError(f"{name}: holds {shown(rows)}: give a JSON list of rows")
    return rows


def _read_csv(path: Path, *, name: str) -> Iterator[dict]:
    """Yields rows in which a cell with a JSON list is a conversation, and an empty cell a missing value."""
    csv.field_size_limit(MAX_CELL_CHARS)
    reader, number = csv.DictReader(lines_of(path, name=name), strict=True), 0
    while True:
        number += 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{name}: row {number}: {error}") from None
        if row is None:
            return
        if None in row or None in row.values():
            raise ValueError(
                f"{name}: row {number}: does not have as many cells as the header ({len(reader.fieldnames)}): "
                "check quotes and commas"
            )
        yield {key: _cell(value) for key, value in row.items()}


def _cell(text: str) -> str | list | None:
    if not text.startswith("[{"):
        return text or None
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return text


def _read_parquet(path: Path, *, name: str) -> Iterator[dict]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(NUM_BATCH_ROWS):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: not a readable Parquet file, {reason}: write it again; is it cut off?") from error


READERS: dict[str, Callable[..., Iterable[dict]]] = {
    ".jsonl": JsonLines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
