"""Read a data set's raw rows, wherever it lies and in whichever of four file formats.

path, gs://, s3:// (JSONL, JSON, CSV, Parquet) or Hub id -> list of dicts, in the data set's order; digest, commit
"""

import csv
import hashlib
import io
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import record, storage
from posttrain.rows import read_jsonl_as, read_text, shown

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_CELL_CHARS = 1 << 24  # Python's default of 131,072 is shorter than some conversations


@dataclass(frozen=True)
class DataSet:
    """Rows as they were read, and of what."""

    rows: list[dict]
    digest: str  # SHA-256 of the file; of a data set on the Hub, of its rows as JSON Lines
    commit: str = ""  # of the Hub


def read_rows(uri: str) -> list[dict]:
    """The rows of `uri`, as `read_data_set` finds them."""
    return read_data_set(uri).rows


def read_data_set(uri: str, *, hub_subset: str | None = None, hub_split: str = "train") -> DataSet:
    """What lies at `uri`: a file, or `owner/name[@revision]` on the Hub.

    Raises:
        ValueError: naming the place, and line or row, where it is missing, unreadable or in no known format.
        ConnectionError: the Hub does not answer.
    """
    place = storage.kind(uri)
    if place == "hub" and Path(uri).suffix not in SUFFIXES:
        return _read_hub(uri, subset=hub_subset, split=hub_split)
    if place in ("gs", "s3"):
        return _read_remote(uri)
    path = Path(uri) if place == "hub" else storage.local_path(uri)
    if path.is_dir():
        raise ValueError(f"{uri}: is a folder: give one file ({', '.join(SUFFIXES)})")
    if not path.is_file():
        raise ValueError(f"{uri}: no such file: give a path, gs://, s3:// or a Hub id owner/name")
    return DataSet(read_file(path, name=uri), record.digest(path))


def read_file(path: str | Path, *, name: str) -> list[dict]:
    """The rows of a local file, `name` being what the user called it."""
    readers = {".jsonl": read_jsonl_as, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    suffix = Path(path).suffix.lower()
    if suffix not in readers:
        raise ValueError(f"{name}: unknown file format {suffix!r}: use one of {', '.join(SUFFIXES)}")
    rows = readers[suffix](path, name=name)
    if not rows:
        raise ValueError(f"{name}: holds no rows: give a data set with at least one row")
    return rows


def _read_remote(uri: str) -> DataSet:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / uri.rsplit("/", 1)[-1])
        try:
            storage.download_file(uri, path)
        except FileNotFoundError as error:
            raise ValueError(f"{uri}: no such object: check the address") from error
        return DataSet(read_file(path, name=uri), record.digest(path))


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
    rows = dataset.to_list()
    lines = "".join(json.dumps(row, default=str) + "\n" for row in rows)
    return DataSet(rows, hashlib.sha256(lines.encode()).hexdigest(), _commit(dataset))


def _commit(dataset: Any) -> str:
    """The commit that was loaded. Only the folder in which the library keeps the rows says it, on line and off."""
    folders = {Path(file["filename"]).parent.name for file in dataset.cache_files}
    return next((name for name in folders if COMMIT.fullmatch(name)), "")


def _read_json(path: str | Path, *, name: str) -> list[dict]:
    try:
        rows = json.loads(read_text(path, name=name))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name}: line {error.lineno}: not valid JSON, {error.msg} at column {error.colno}: repair the file; "
            "is it cut off, or JSON Lines under the name .json?"
        ) from None
    if not isinstance(rows, list):
        raise ValueError(f"{name}: holds {shown(rows)}: give a JSON list of rows")
    return rows


def _read_csv(path: str | Path, *, name: str) -> list[dict]:
    """Cells that hold a JSON list are taken for conversations; an empty cell is a missing value."""
    csv.field_size_limit(MAX_CELL_CHARS)
    text = read_text(path, name=name)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"has not as many cells as the header ({len(reader.fieldnames)}): check quotes and commas"
                )
            rows.append({key: _cell(value) for key, value in row.items()})
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{name}: row {len(rows) + 1}: {error}") from None
    return rows


def _cell(text: str) -> str | list | None:
    if not text.startswith("[{"):
        return text or None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _read_parquet(path: str | Path, *, name: str) -> list[dict]:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: not a readable Parquet file, {reason}: write it again; is it cut off?") from error
