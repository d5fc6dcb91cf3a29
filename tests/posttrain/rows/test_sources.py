import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from posttrain import storage
from posttrain.rows.sources import open_data_set, read_rows, suffix_of
from posttrain.step import digests

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
    path = save(tmp_path / f"rows{suffix}", rows)
    with open_data_set(path) as opened:
        assert ([*opened.rows], opened.digest, opened.commit) == (rows, digests.digest(path), "")
        assert [*opened.rows] == rows  # anew
    assert read_rows(path) == rows


def test_a_hub_id_is_loaded_at_its_revision(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, subset, *, split, revision):
        asked.append((name, subset, split, revision))
        return datasets.Dataset.from_list(TURNS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with open_data_set("acme/rows@v1", hub_subset="chat", hub_split="train_sft") as opened:
        assert [*opened.rows] == TURNS
    assert read_rows("hf://acme/rows") == TURNS
    assert asked == [("acme/rows", "chat", "train_sft", "v1"), ("acme/rows", None, "train", None)]


COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROW = b'{"prompt": "a", "completion": "b"}\n'


class Hub(BaseHTTPRequestHandler):
    """The answers of the Hub that loading a data set of one file needs: its description, its files, their bytes."""

    def do_GET(self):
        folder = {"type": "directory", "path": "data", "oid": "0" * 40, "size": 0}
        file = {"type": "file", "path": "data/train.jsonl", "oid": "0" * 40, "size": len(ROW)}
        path, _, query = self.path.partition("?")
        if path.startswith("/api/datasets/acme/rows/tree/"):
            self.reply([folder, file] if "recursive=true" in query else [folder])
        elif path.startswith("/api/datasets/acme/rows"):
            self.reply({"id": "acme/rows", "sha": COMMIT, "siblings": [{"rfilename": file["path"]}]})
        elif path == f"/datasets/acme/rows/resolve/{COMMIT}/data/train.jsonl":
            self.reply(ROW, ETag='"0"')
        else:
            self.reply(b"", 404)

    do_HEAD = do_GET

    def reply(self, body: bytes | list | dict, status: int = 200, **headers: str) -> None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        known = {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT}
        for name, value in (known | headers | ({"X-Error-Code": "EntryNotFound"} if status == 404 else {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_data_set_of_the_hub_says_its_commit_on_line_and_off(hub, tmp_path):
    code = (
        "from posttrain.rows.sources import open_data_set\nwith open_data_set('acme/rows') as f: "
        "print([*f.rows], f.commit, f.digest)"
    )
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path)}
    for offline in "01":
        loaded = subprocess.run(
            [sys.executable, "-c", code], env=environment | {"HF_HUB_OFFLINE": offline}, capture_output=True, text=True
        )
        digest = hashlib.sha256(ROW).hexdigest()
        assert loaded.stdout == f"[{{'prompt': 'a', 'completion': 'b'}}] {COMMIT} {digest}\n", loaded.stderr


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
        ("deep.json", "[" * 100_000, "JSON with more than 200 levels of lists and objects: flatten it"),
        ("object.json", '{"data": []}', "holds {'data': []}: give a JSON list"),
        ("header.csv", "prompt,completion\n", "holds no rows"),
        ("short.csv", "prompt,completion\na,b\nc\n", "line 3, row 2: does not have as many cells as the header (2)"),
        ("quote.csv", 'prompt,completion\na,b\n"c,d\n', "row 2: the quote that opens in line 3 is never closed"),
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
    for before, bad, at in ((b"", b"\xff", 12), (b"x" * 3_000_000, b"\xff", 3_000_012), (b"", b"\xe2\x82", 12)):
        path.write_bytes(b'{"prompt": "' + before + bad + b'"}\n')
        with pytest.raises(ValueError, match=rf"rows.jsonl: line 1: not UTF-8 at byte {at}: convert"):
            read_rows(str(path))


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file: give a path, gs://, s3:// or a Hub id"):
        read_rows(str(tmp_path / "rows.jsonl"))
    with pytest.raises(ValueError, match="is a folder: give one file"):
        read_rows(str(tmp_path))


def test_an_object_is_downloaded_and_called_by_its_uri(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "download_file", lambda uri, path: digests.digest(save(Path(path), TEXT)))
    with open_data_set("gs://bucket/rows.parquet") as opened:
        assert ([*opened.rows], opened.digest) == (TEXT, digests.digest(save(tmp_path / "rows.parquet", TEXT)))
    with pytest.raises(ValueError, match="gs://bucket/rows.txt"):
        read_rows("gs://bucket/rows.txt")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("twice.jsonl", '{"prompt": "a"}\n\n{"prompt": "a", "prompt": "b"}', "line 3: 'prompt' appears twice, and"),
        ("deep.jsonl", '{"messages": [{"role": "user", "role": "user"}]}', "line 1: 'messages[0].role' appears twice"),
        ("twice.json", '[{"a": 1},\n{"b": 1, "b": 2}]', "row 2: 'b' appears twice"),
        ("big.json", '[{"id": ' + "9" * 5000 + "}]", "row 1: 'id' is a number of 5000 digits"),
        ("nan.json", '[{}, {}, {"a": NaN}]', "row 3: 'a' is NaN"),
        ("nan.jsonl", '{}\n{"a": [-Infinity]}', "line 2: 'a[0]' is -Infinity"),
        ("brackets.jsonl", '{"a": ' + "[" * 990 + "]" * 990 + "}", "line 1: "),
        ("brackets.json", "[" * 100_000, ": JSON with more than 200 levels of lists and objects: flatten it"),
        ("half.jsonl", r'{"prompt": "half an emoji \ud83d"}', "line 1: 'prompt' has an unpaired UTF-16 surrogate"),
        ("half.json", r'[{"id": "\udc00"}]', "row 1: 'id' has an unpaired UTF-16 surrogate"),
        ("texts.json", '["how?", "why?"]', "row 1: is 'how?': give an object with keys and values"),
        ("twice.csv", "prompt,completion,prompt\na,b,c\n", "the column 'prompt' appears twice"),
        ("unnamed.csv", "prompt,,completion,\na,,b,\n", "the column '' appears twice"),
        ("open.csv", 'prompt,completion\nq 1,"a\nq 0,a 0\nq 1,a 1\n', "row 1: the quote that opens in line 2 is never"),
        (
            "later.csv",
            'a,b\n"x\ny","say ""it"""\n\nq," a\n "" b\n"\nz,"\n1,2',
            "row 3: the quote that opens in line 8 is",
        ),
        ("header.csv", 'prompt,"completion\na,b\n', "header.csv: the quote that opens in line 1 is never closed"),
        ("after.csv", 'a,b\n1,"2" 3\n', "row 1: ',' expected after '\"': check quotes and commas"),
        ("many.csv", "a,b\n\n1,2\n\n1,2,3\n", "line 5, row 2: does not have as many cells as the header (2)"),
        ("cell.csv", 'a,b\n1,"[{""role"": 1, ""role"": 2}]"\n', "line 2, row 1, 'b': '[0].role' appears twice"),
        ("cell.csv", 'a,b\n"[{""a"": ' + "[" * 9999 + '",2\n', "line 2, row 1, 'a': JSON with more than 200 levels"),
    ],
)
def test_a_value_that_would_be_lost_or_ends_a_reader_is_refused_by_place_and_key(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as caught:
        read_rows(str(tmp_path / name))
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


def packed(data: bytes, codec: str) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv.gz", ".json"])
def test_a_file_is_unpacked_by_what_it_is_and_not_by_its_name(tmp_path, codec, suffix):
    plain = Path(save(tmp_path / f"rows{suffix_of(f'rows{suffix}')}", TEXT))
    halves = plain.read_bytes()[:30], plain.read_bytes()[30:]
    path = tmp_path / f"packed{suffix}"
    path.write_bytes(b"".join(packed(half, codec) for half in halves))  # as tools that pack side by side write them
    assert read_rows(str(path)) == TEXT


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (packed(b'{"prompt": "a"}\n' * 500, "gzip")[:-9], "rows.jsonl: cannot be decompressed, .*: is it cut off"),
        (packed(b'{"prompt": "a"}\n' * 500, "zstd")[:-9], "rows.jsonl: cannot be decompressed, .*: is it cut off"),
        (packed(b"{}\n{}\n\xff", "gzip"), "rows.jsonl: line 3: not UTF-8 at byte 6: convert"),
        (packed(b'{"a": 1}\n{"a', "zstd"), "rows.jsonl: line 2: not valid JSON"),
        (b"PK\x03\x04...", "rows.jsonl: is a zip archive, not text: unpack it"),
        (b"PAR1...", "rows.jsonl: is Parquet, not text: name it .parquet"),
        ('{"a": 1}'.encode("utf-16"), "rows.jsonl: is UTF-16, not text: convert the file to UTF-8"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "rows.jsonl: is a pointer of Git LFS, not text: fetch the file",
        ),
    ],
)
def test_bytes_that_are_no_jsonl_are_called_what_they_are(tmp_path, content, expected):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        read_rows(str(tmp_path / "rows.jsonl"))


FAR = 9_223_372_036_854_775_807 // 1000  # microseconds: in the year 294,247


def table(**columns):
    import pyarrow

    text = {"prompt": ["a", "b"], "completion": ["c", "d"]}
    arrays = {
        name: value if isinstance(value, pyarrow.Array) else pyarrow.array(value) for name, value in columns.items()
    }
    return pyarrow.table(text | arrays)


def no_utf8():
    import pyarrow

    return pyarrow.Array.from_buffers(pyarrow.string(), 2, pyarrow.array([b"a", b"\xff"]).buffers())


def far():
    import pyarrow

    return pyarrow.array([0, FAR * 1000], pyarrow.timestamp("us"))


@pytest.mark.parametrize("bad", [far, no_utf8])
def test_a_column_that_no_format_asks_for_is_not_read(tmp_path, bad, monkeypatch):
    import datasets
    from pyarrow import parquet

    parquet.write_table(table(created=bad(), score=[1.0, 2.0], nothing=[None, None]), tmp_path / "rows.parquet")
    rows = read_rows(str(tmp_path / "rows.parquet"))
    assert [(row["prompt"], row["completion"]) for row in rows] == [("a", "c"), ("b", "d")]
    assert [*rows[0]] == ["prompt", "completion", "created", "score", "nothing"]
    assert [str(rows[0][key]) for key in ("created", "score")] == ["a column that is not read"] * 2
    assert rows[0]["nothing"] is None  # as a null of any other format
    dataset = datasets.Dataset(table(created=bad(), nothing=[None, None]))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    from_hub = read_rows("acme/rows")
    assert [(row["prompt"], str(row["created"]), row["nothing"]) for row in from_hub] == [
        (prompt, "a column that is not read", None) for prompt in "ab"
    ]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"id": no_utf8}, "rows.parquet: row 2: 'id' cannot be read, 'utf-8' codec"),
        ({"label": far}, "rows.parquet: row 2: 'label' cannot be read, .*: repair it"),
    ],
)
def test_a_bad_value_of_a_parquet_column_is_named_by_its_row(tmp_path, columns, expected, monkeypatch):
    import datasets
    from pyarrow import parquet

    made = table(**{name: make() for name, make in columns.items()})
    parquet.write_table(made, tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=expected):
        read_rows(str(tmp_path / "rows.parquet"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset(made))
    with pytest.raises(ValueError, match="acme/rows: row 2: cannot be read, .*: repair the data set"):
        read_rows("acme/rows")


def test_parquet_that_is_packed_or_has_a_column_twice_is_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(table(), tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet.gz").write_bytes(packed((tmp_path / "rows.parquet").read_bytes(), "gzip"))
    with pytest.raises(ValueError, match="rows.parquet.gz: is compressed: decompress it"):
        read_rows(str(tmp_path / "rows.parquet.gz"))
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["prompt", "prompt"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="twice.parquet: the column 'prompt' appears twice"):
        read_rows(str(tmp_path / "twice.parquet"))
