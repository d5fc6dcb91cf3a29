"""Reads the raw rows of a data set from this machine, gs://, s3:// or the Hub.

path, gs://, s3:// (JSONL, JSON, CSV, Parquet) or Hub id -> dicts, one after the other, in order; digest, commit

JSONL, JSON and CSV may be gzip'd or zstd'd. Of Parquet and of the Hub only `COLUMNS` are read: what no format asks for
cannot be wrong, and costs nothing. Such a column is `Unread` in each row.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from posttrain import storage
from posttrain.config.documents import Refused, parse_json
from posttrain.rows import keys
from posttrain.rows.comma_separated import read_csv
from posttrain.rows.files import GZIP, ZSTD, check_columns, read_text
from posttrain.rows.formats import JsonLines, shown
from posttrain.step import digests

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
PACKED = (".gz", ".zst", ".zstd")  # may follow one of them
# Keys that a format of rows asks for, or refuses by their value.
COLUMNS = frozenset(
    {
        *("id", "messages", "prompt", "completion", "chosen", "rejected", "references", "system", "label", "weight"),
        *("tools", "tool_calls", "functions", "function_call", "conversations", "conversation", "history", "text"),
        *("instruction", "input", "output", "question", "answer", "query", "response", "context", "train"),
        *("reasoning_content", "chat_template_kwargs", *keys.SYSTEM, *keys.REFUSED),
    }
)
COMMIT = re.compile(r"[0-9a-f]{40}")
NUM_BATCH_ROWS = 1 << 10  # rows of Parquet read at once


class Unread:
    """Stands for the values of a column that no format asks for."""

    def __repr__(self) -> str:
        return "a column that is not read"


UNREAD = Unread()


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
        number = 0
        for number, row in enumerate(READERS[suffix_of(self.path)](self.path, name=self.name), start=1):
            if not isinstance(row, dict):
                raise ValueError(f"{self.name}: row {number}: is {shown(row)}: give an object with keys and values")
            yield row
        if not number:
            raise ValueError(f"{self.name}: holds no rows: give a data set with at least one row")


def suffix_of(uri: str | Path) -> str:
    """Returns the suffix that says a file's format: `.jsonl` of `rows.jsonl.gz`."""
    path = Path(uri)
    return (Path(path.stem) if path.suffix.lower() in PACKED else path).suffix.lower()


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
    if place == "hub" and suffix_of(uri) not in SUFFIXES:
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
    if suffix_of(path) not in SUFFIXES:
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
    from datasets.exceptions import DatasetsError

    name, revision = storage.hub_id(uri)
    try:
        dataset = load_dataset(name, subset, split=split, revision=revision)
    except ConnectionError as error:
        raise ConnectionError(
            f"{uri}: no such file, and the Hub does not answer: check the path, or try again"
        ) from error
    except (DatasetsError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{uri}: neither a file nor loadable from the Hub (subset {subset}, split {split}), {reason}: "
            "check the id, data.hub_subset and data.hub_split"
        ) from error
    rows, digest = HubRows(dataset, uri), hashlib.sha256()
    for row in rows:
        digest.update((json.dumps(row, default=str) + "\n").encode())
    return DataSet(rows, digest.hexdigest(), _commit(dataset))


@dataclass(frozen=True)
class HubRows:
    """The rows of a data set on the Hub. Iterating raises ValueError, naming data set and row."""

    dataset: Any
    name: str

    def __iter__(self) -> Iterator[dict]:
        names = self.dataset.column_names
        unread = {name: self._unread(name) for name in names if name not in COLUMNS}
        kept = self.dataset.select_columns([name for name in names if name in COLUMNS])
        for row in _each(kept, name=self.name):
            yield {name: unread[name] if name in unread else without_nulls(row[name]) for name in names}

    def _unread(self, name: str) -> Unread | None:
        column = self.dataset.data.column(name)
        return None if column.null_count == len(column) else UNREAD


def _each(rows: Iterable[dict], *, name: str) -> Iterator[dict]:
    """Names data set and row in an error of a value that Python does not have, such as a date in the year 300,000."""
    iterator = iter(rows)
    for number in count(1):
        try:
            yield next(iterator)
        except StopIteration:
            return
        except (ValueError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{name}: row {number}: cannot be read, {reason}: repair the data set") from error


def without_nulls(value: Any) -> Any:
    """Returns a value without the nulls in its objects: in a column of objects, each has the keys of all others."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _commit(dataset: Any) -> str:
    """Returns the commit that was loaded. Only the name of the folder of cached rows has it, online and offline."""
    folders = {Path(file["filename"]).parent.name for file in dataset.cache_files}
    return next((name for name in folders if COMMIT.fullmatch(name)), "")


def _read_json(path: Path, *, name: str) -> list[Any]:
    """Reads the whole list at once. JSON Lines or Parquet are better for large data sets."""
    try:
        rows = parse_json(read_text(path, name=name))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name}: line {error.lineno}: not valid JSON, {error.msg} at column {error.colno}: repair the file; "
            "is it cut off, or JSON Lines under the name .json?"
        ) from None
    except Refused as error:
        row, *path_in_row = error.path or [None]
        is_row = isinstance(row, int)
        fault = Refused(tuple(path_in_row), error.what) if is_row else error
        raise ValueError(f"{name}: {f'row {row + 1}: ' if is_row else ''}{fault}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{name}: holds {shown(rows)}: give a JSON list of rows")
    return rows


def _read_parquet(path: Path, *, name: str) -> Iterator[dict]:
    import pyarrow
    from pyarrow import parquet

    with path.open("rb") as file:
        if file.read(4).startswith((GZIP, ZSTD)):
            raise ValueError(f"{name}: is compressed: decompress it; Parquet compresses its columns itself")
    number = 1
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            check_columns(names, name=name)
            unread = {column: _unread(file, column) for column in names if column not in COLUMNS}
            for batch in _batches(file, [column for column in names if column in COLUMNS]):
                columns = {key: _values(batch.column(key), key, name=name, number=number) for key in batch.schema.names}
                for at in range(batch.num_rows):
                    yield {key: without_nulls(columns[key][at]) if key in columns else unread[key] for key in names}
                number += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: not a readable Parquet file, {reason}: write it again; is it cut off?") from error


def _batches(file: Any, columns: list[str]) -> Iterator[Any]:
    import pyarrow

    if columns:
        yield from file.iter_batches(NUM_BATCH_ROWS, columns=columns)
    elif file.metadata.num_rows:  # only the number of rows is of use: the first is refused for its keys
        yield pyarrow.record_batch([pyarrow.nulls(1)], names=["id"])


def _unread(file: Any, column: str) -> Unread | None:
    """Returns None for a column that has no value in any row, which counts as missing."""
    groups = (file.metadata.row_group(at) for at in range(file.metadata.num_row_groups))
    chunks = [group.column(at) for group in groups for at in range(group.num_columns)]
    counts = [chunk.statistics for chunk in chunks if chunk.path_in_schema.partition(".")[0] == column]
    has_type = str(file.schema_arrow.field(column).type) != "null"
    return UNREAD if has_type and any(one is None or one.num_values for one in counts) else None


def _values(column: Any, key: str, *, name: str, number: int) -> list[Any]:
    """Converts a column; names the row of a value that cannot be, such as bytes that are no UTF-8."""
    import pyarrow

    failures = (ValueError, OverflowError, pyarrow.ArrowException)
    try:
        return column.to_pylist()
    except failures:
        for row, value in enumerate(column, start=number):
            try:
                value.as_py()
            except failures as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"{name}: row {row}: {key!r} cannot be read, {reason}: repair it") from error
        raise


READERS: dict[str, Callable[..., Iterable[dict]]] = {
    ".jsonl": JsonLines,
    ".json": _read_json,
    ".csv": read_csv,
    ".parquet": _read_parquet,
}
