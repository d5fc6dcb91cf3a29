"""The launch step as a process of its own, with a cluster's credentials: `python -m tests.launch_step FOLDER FLAGS`."""

import sys
from pathlib import Path

from posttrain import launch
from posttrain.nodes import follow, kubernetes

kubernetes.SERVICE_ACCOUNT = Path(sys.argv[1])
follow.LOOK_SECONDS = 1

if __name__ == "__main__":
    launch.main(sys.argv[2:])
