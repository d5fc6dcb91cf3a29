import json
from pathlib import Path

import pytest

from posttrain import storage
from posttrain.sources import read_rows

TEXT = [{"prompt": 'say "hi",\nplease', "completion": "héllo"}, {"prompt": "x", "completion": "y"}]
TURNS = [{"messages": [{"role": "user", "content": "a, b"}, {"role": "assistant", "content": 'c "d"'}]}]


def save(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows), encoding="utf-8-sig")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
    elif path.suffix == ".csv":
        import csv

        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            for row in rows:
                writer.writerow(
                    {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
                )
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("rows", [TEXT, TURNS], ids=["text", "turns"])
def test_every_file_format_gives_the_same_rows(tmp_path, suffix, rows):
    assert read_rows(save(tmp_path / f"rows{suffix}", rows)) == rows


def test_a_hub_id_is_loaded_at_its_revision(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, subset, *, split, revision):
        asked.append((name, subset, split, revision))
        return datasets.Dataset.from_list(TURNS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_rows("acme/rows@v1", hub_subset="chat", hub_split="train_sft") == TURNS
    assert read_rows("hf://acme/rows") == TURNS
    assert asked == [("acme/rows", "chat", "train_sft", "v1"), ("acme/rows", None, "train", None)]


def test_a_hub_id_that_is_not_there_is_refused(monkeypatch):
    import datasets

    def load_dataset(name, subset, *, split, revision):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'acme/rows' doesn't exist\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        ValueError, match="acme/rows: neither a file nor loadable from the Hub .* exist on the Hub: check the id"
    ):
        read_rows("acme/rows")


def test_a_missing_relative_file_is_not_sought_on_the_hub():
    with pytest.raises(ValueError, match="data/rows.jsonl: no such file"):
        read_rows("data/rows.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("cut.jsonl", '{"prompt": "a"}\n{"prompt": "b', "line 2: not valid JSON, Unterminated string"),
        ("list.jsonl", "[1, 2]\n", "line 1: is [1, 2], not a JSON object"),
        ("empty.jsonl", "\n\n", "holds no rows"),
        ("cut.json", '[{"prompt": "a"},\n {"pro', "line 2: not valid JSON"),
        ("object.json", '{"data": []}', "holds {'data': []}: give a JSON list"),
        ("header.csv", "prompt,completion\n", "holds no rows"),
        ("short.csv", "prompt,completion\na,b\nc\n", "row 2: has not as many cells as the header (2)"),
        ("quote.csv", 'prompt,completion\na,b\n"c,d\n', "row 2: unexpected end of data"),
        ("cut.parquet", "PAR1", "not a readable Parquet file"),
        ("rows.txt", "a", "unknown file format '.txt': use one of .jsonl"),
    ],
)
def test_a_bad_file_is_refused_on_one_line(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        read_rows(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert "\n" not in message


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl: not UTF-8 at byte 12: convert"):
        read_rows(str(path))


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file: give a path, gs://, s3:// or a Hub id"):
        read_rows(str(tmp_path / "rows.jsonl"))
    with pytest.raises(ValueError, match="is a folder: give one file"):
        read_rows(str(tmp_path))


def test_an_object_is_downloaded_and_called_by_its_uri(monkeypatch):
    monkeypatch.setattr(storage, "download_file", lambda uri, path: save(Path(path), TEXT))
    assert read_rows("gs://bucket/rows.parquet") == TEXT
    with pytest.raises(ValueError, match="gs://bucket/rows.txt"):
        read_rows("gs://bucket/rows.txt")
