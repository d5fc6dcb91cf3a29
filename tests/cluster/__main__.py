"""Tries the line on a cluster: is it promoted, reused, refused, resumed, reported there as the documentation says?

    python -m tests.cluster --endpoint URL --storage gs://bucket/folder [--config CLUSTER.yaml] [--only promoted sweep]

Uploads a model of 150 thousand parameters and its data below the storage address and runs the line on them, in about 30
minutes. The cluster's own settings (secrets, node selectors, a registry) are those of --config. Ends with two tables:
how each trial went, and what this cluster does. Exit code: 0 if all is as it must be on any cluster.
"""

import argparse
import sys
import time
import uuid
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from posttrain import storage
from posttrain.pages import wording
from tests.cluster.site import Site, temporary_folder
from tests.cluster.trials import NEEDS_KUBECTL, TRIALS, Seen

MISSING = (AssertionError, OSError, ValueError)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--endpoint", required=True, metavar="URL", help="Kubeflow Pipelines")
    add(
        "--storage", required=True, metavar="URI", help="gs:// or s3:// folder that the pods and this machine can write"
    )
    add("--config", nargs="*", default=[], type=Path, metavar="FILE", help="settings of the cluster, over the line's")
    add("--namespace", metavar="NAME", help="namespace, if Kubeflow has several users")
    add("--token-file", metavar="FILE", help="file with the bearer token")
    add("--only", nargs="*", choices=TRIALS, metavar="TRIAL", help=f"some of {', '.join(TRIALS)}")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    root = storage.join(args.storage, f"test-cluster-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}")
    folder = temporary_folder()
    print(f"Storage: {root}\nLog:     {folder}/runs.log", flush=True)
    access = {"namespace": args.namespace, "token_file": args.token_file}
    site = Site.prepare(endpoint=args.endpoint, root=root, folder=folder, configs=args.config, **access)
    outcomes, seen = run_trials(site, args.only or list(TRIALS))
    print_tables(outcomes, seen)
    return int(any(outcome == "FAILED" for outcome, *_ in outcomes.values()))


def run_trials(site: Site, names: list[str]) -> tuple[dict[str, tuple[str, float, str]], Seen]:
    """Runs the trials; returns outcome, seconds and note of each, and what the cluster was seen to do."""
    outcomes: dict[str, tuple[str, float, str]] = {}
    seen = Seen()
    for name in dict.fromkeys(names):
        if name in NEEDS_KUBECTL and not site.has_kubectl:
            outcomes[name] = ("left out", 0.0, "there is no kubectl on PATH")
            continue
        started = time.monotonic()
        try:
            outcome, note = "ok", TRIALS[name](site, seen)
        except MISSING as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            outcome, note = "FAILED", str(error).partition("\n")[0]
        outcomes[name] = (outcome, time.monotonic() - started, note)
        print(f"{name}: {outcome}, {wording.duration(outcomes[name][1])}: {note}", flush=True)
    return outcomes, seen


def print_tables(outcomes: dict[str, tuple[str, float, str]], seen: Seen) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    trials, facts = (Table(box=SIMPLE_HEAD, pad_edge=False) for _ in range(2))
    for title in ("Trial", "Outcome", "Time", "Seen"):
        trials.add_column(title)
    for name, (outcome, seconds, note) in outcomes.items():
        trials.add_row(name, outcome, wording.duration(seconds), wording.line(note))
    for title in ("On this cluster", ""):
        facts.add_column(title)
    for name, fact in seen.facts.items():
        facts.add_row(name, wording.line(fact))
    console.print(trials, facts)


if __name__ == "__main__":
    sys.exit(main())
