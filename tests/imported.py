"""Imports that the processes of a run really make: a `sitecustomize.py` that writes them down, and its reader.

folder -> environment of the run; afterwards step -> modules of ours that its processes looked for
"""

import os
from collections import defaultdict
from pathlib import Path

WATCH = """
import os, sys

class Watch:
    def find_spec(name, path=None, target=None):
        if name.startswith(("posttrain", "validators")) and "--step" in sys.argv:
            line = f"{sys.argv[sys.argv.index('--step') + 1]} {name}\\n"
            log = os.open(os.environ["IMPORTED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(log, line.encode())
            os.close(log)

sys.meta_path.insert(0, Watch)
"""


def watching(folder: Path, *, also: str = "") -> dict[str, str]:
    """The environment in which every process writes down what it imports, and runs `also` when it starts."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(WATCH + also)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "IMPORTED": str(folder / "imported")}


# Start a step and decide nothing of its result.
STARTERS = {"posttrain.step.attempts", "posttrain.step.become", "posttrain.step.parent"}


def imported(folder: Path) -> dict[str, set[str]]:
    """Step -> modules. A step that is started by another one counts by its own name."""
    steps = defaultdict(set)
    for line in (folder / "imported").read_text().splitlines():
        step, module = line.split()
        steps[step] |= {module} - STARTERS
    return steps
