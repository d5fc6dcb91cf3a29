"""Publishes the model of a finished line in a process of its own, which dies where it is told to.

folder of the line, run id, root -> versions v0, v1, ... below <root>/m; for each `published` or why not on stdout
"""

import argparse
import os
import signal
import time
from pathlib import Path

from posttrain import storage
from tests.posttrain.line import Line

NUM_WRITES = 9  # claim, three files of the model, card, chain, sums, manifest; and the claim goes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("run_id")
    parser.add_argument("root")
    parser.add_argument("--die-after", type=int, help="number of writes after which SIGKILL comes")
    parser.add_argument("--go", type=Path, help="folder in which a file of its number starts each round")
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    line = Line(args.folder, run_id=args.run_id)
    if args.die_after:
        die_after(args.die_after)
    for number in range(args.rounds):
        if args.go:
            wait(args.go, args.run_id, number)
        try:
            line.publish(args.root, version=f"v{number}")
        except ValueError as error:
            print(error)
        else:
            print("published")


def die_after(num_writes: int) -> None:
    """Counts each file that is written or removed. A folder goes up file by file, so that death can come in between."""
    left = [num_writes]

    def counted(change):
        def write(*arguments, **words) -> str | None:
            found = change(*arguments, **words)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return write

    def upload_folder(path, uri) -> dict[str, str]:
        names = storage.list_files(path)
        return {name: storage.upload_file(Path(path, name), storage.join(uri, name)) for name in names}

    for name in ("write_bytes", "upload_file", "remove"):
        setattr(storage, name, counted(getattr(storage, name)))
    storage.upload_folder = upload_folder


def wait(go: Path, run_id: str, number: int) -> None:
    (go / f"{run_id}-{number}").touch()
    while not (go / str(number)).exists():
        time.sleep(0.0005)


if __name__ == "__main__":
    main()
