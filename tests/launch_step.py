"""The launch step as a process of its own, with a cluster's credentials: `python -m tests.launch_step FOLDER FLAGS`."""

import os
import sys
from pathlib import Path

from posttrain.nodes import follow, kubernetes, launch
from posttrain.train import order

kubernetes.SERVICE_ACCOUNT = Path(sys.argv[1])
follow.LOOK_SECONDS = follow.RENEW_SECONDS = 1
order.LAPSE_SECONDS = float(os.environ.get("LAPSE_SECONDS", order.LAPSE_SECONDS))
if seconds := os.environ.get("LIMIT_SECONDS"):
    order_of = launch.order_of
    launch.order_of = lambda *args, **kw: order_of(*args, **kw).model_copy(update={"limit_seconds": float(seconds)})

if __name__ == "__main__":
    launch.main(sys.argv[2:])
