"""A run on this machine as on a cluster: its trainings are launched on several nodes, if it is configured so.

python -m tests.placed_line FLAGS OF run_pipeline.py
"""

import sys
from pathlib import Path

import run_pipeline
from runner import here
from runner.request import RunRequest

# Of every process of the run, as `also` of `tests.imported.watching`: where the kubelet would have mounted credentials.
CREDENTIALS = """
from pathlib import Path
from posttrain.nodes import kubernetes
kubernetes.SERVICE_ACCOUNT = Path({folder!r})
"""


def compile_placed(request: RunRequest, graph: Path) -> None:
    request.compile(graph, by_trial=True)


if __name__ == "__main__":
    here.compile_unplaced = compile_placed
    sys.exit(run_pipeline.main())
