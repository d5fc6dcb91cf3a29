"""A run on this machine as on a cluster: its trainings are launched on several nodes, if it is configured so.

python -m tests.placed_line FLAGS OF run_pipeline.py
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import run_pipeline
from runner import here
from runner.local import Runner
from runner.request import RunRequest

# For every process of the run, as `also` of `tests.imported.watching`: where a cluster has mounted its credentials.
CREDENTIALS = """
from pathlib import Path
from posttrain.nodes import kubernetes
kubernetes.SERVICE_ACCOUNT = Path({folder!r})
"""


def compile_placed(request: RunRequest, graph: Path) -> None:
    request.compile(graph, by_trial=True)


@contextmanager
def unforked(runner: Runner, *_) -> Iterator[Runner]:
    """Starts each step as a process: a fork imports our modules afresh, without those credentials."""
    yield runner


if __name__ == "__main__":
    here.compile_unplaced, here.forked = compile_placed, unforked
    sys.exit(run_pipeline.main())
