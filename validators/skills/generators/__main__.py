"""Writes the rows of every suite: `python -m validators.skills.generators`. The same code writes the same rows."""

import json
from dataclasses import asdict

from validators.skills import suites
from validators.skills.generators import WRITERS


def text_of(name: str) -> str:
    """Renders the file of a suite, as JSON Lines."""
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in WRITERS[name]())


def main() -> None:
    """Writes all files."""
    for name in WRITERS:
        (suites.FOLDER / f"{name}.jsonl").write_text(text_of(name), encoding="utf-8")


if __name__ == "__main__":
    main()
