"""A step that says what it has of its own, and what of the process that it was forked from."""

import argparse
import atexit
import json
from pathlib import Path

from posttrain.step import run
from posttrain.train import ends


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--found")
    args, _ = parser.parse_known_args()
    found = {"run_id": run.run_id(), "has_started_itself": ends.STARTED > 0}
    Path(args.found).write_text(json.dumps(found))
    atexit.register(Path(args.found + ".at_exit").touch)


if __name__ == "__main__":
    main()
