"""Reads the rows of a CSV file, and says in which line one goes wrong.

path -> dicts; a cell with a JSON list is a conversation, an empty one a missing value
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

from posttrain.config.documents import parse_json
from posttrain.rows.files import check_columns, lines_of

MAX_CELL_CHARS = 1 << 24  # Python's default of 131,072 is shorter than some conversations
QUOTES = re.compile(r'""|"|\n')


class Record:
    """The lines of a file, of which those of the current row are kept."""

    def __init__(self, lines: Iterable[str]):
        self.lines, self.num_lines, self.kept = iter(lines), 0, ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.num_lines += 1
        self.kept = self.kept.lstrip("\n") + line  # blank lines before a row are no part of it
        return line

    def begin(self) -> None:
        self.kept = ""

    @property
    def start(self) -> int:
        """The line, from 1, in which the row begins."""
        return self.num_lines - len(self.kept.removesuffix("\n").split("\n")) + 1

    @property
    def open_quote(self) -> int:
        """The line of the last quote that opens a cell."""
        line, opened, is_open = self.start, self.start, False
        for match in QUOTES.finditer(self.kept):
            begins = self.kept[match.start() - 1 : match.start()] in ("", ",", "\n")
            if match[0] == "\n":
                line += 1
            elif match[0] == '"' and (is_open or begins):
                is_open, opened = not is_open, opened if is_open else line
        return opened

    def fault(self, error: csv.Error) -> str:
        if "unexpected end" in str(error) or "field limit" in str(error):
            return f"the quote that opens in line {self.open_quote} is never closed: close it, or remove it"
        return f"{error}: check quotes and commas; a quote in a cell is written twice"


def read_csv(path: Path, *, name: str) -> Iterator[dict]:
    """Yields the rows; raises ValueError, naming file, line and row, for one that is not as long as the header."""
    csv.field_size_limit(MAX_CELL_CHARS)
    record = Record(lines_of(path, name=name))
    reader = csv.reader(record, strict=True)
    header = _cells(reader, record, place=name) or []
    check_columns(header, name=name)
    for number in count(1):
        record.begin()
        cells = _cells(reader, record, place=f"{name}: row {number}")
        if cells is None:
            return
        place = f"{name}: line {record.start}, row {number}"
        if len(cells) != len(header):
            raise ValueError(
                f"{place}: does not have as many cells as the header ({len(header)}): check quotes and commas"
            )
        yield {key: _value(cell, place=f"{place}, {key!r}") for key, cell in zip(header, cells, strict=True)}


def _cells(reader: Iterator[list[str]], record: Record, *, place: str) -> list[str] | None:
    """Returns the cells of the next line that is not blank; None at the end of the file."""
    try:
        return next(filter(None, reader), None)
    except csv.Error as error:
        raise ValueError(f"{place}: {record.fault(error)}") from None


def _value(cell: str, *, place: str) -> str | list | None:
    if not cell.startswith("[{"):
        return cell or None
    try:
        return parse_json(cell)
    except json.JSONDecodeError:
        return cell
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
