"""Moments at which a run is killed: some time after a step has started, or when a file of a certain kind appears.

step, its usual duration -> a `Moment` -> whether it has come
"""

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

POLL_SECONDS = 0.001
NUM_COMING = 4  # of the steps that a run has before it, so many may be struck
# Of others 1.
WEIGHTS = {"train_sft": 4, "train_dpo": 4, "merge_sft": 3, "merge_dpo": 3, "publish_model": 3, "promote_model": 3}

# Step -> what it writes while it is in the middle of something, as a pattern below the storage root. What is there
# already when a run starts does not count.
FILES = {
    "train_sft": ["checkpoints/train_sft/*/step-*/*", "results/train_sft/*/*/*"],
    "train_dpo": ["checkpoints/train_dpo/*/step-*/*", "checkpoints/train_dpo/*/reference-*.json"],
    "merge_sft": ["artifacts/*/merge_sft/model.partial/*", "results/merge_sft/*/*"],
    "merge_dpo": ["artifacts/*/merge_dpo/model.partial/*", "results/merge_dpo/*/*"],
    "publish_model": ["published/*/*", "published/*/.*.part/*"],
    "promote_model": ["published/*/promotions/*", "published/*/CURRENT"],
}


@dataclass
class Moment:
    """Kills `step` so many seconds after its start, or, with a pattern, when a new file of that kind appears."""

    step: str
    seconds: float
    pattern: str | None = None
    known: set[Path] = field(default_factory=set)

    @property
    def kind(self) -> str:
        return f"{self.step}: {self.pattern.split('/')[0]}" if self.pattern else f"{self.step}: any time"

    def wait(self, root: Path, run) -> bool:
        """Waits until the moment has come; False if the run, or the step, was over before."""
        started = None
        self.known = set(root.glob(self.pattern)) if self.pattern else set()
        while not run.is_over() and self.step not in run.ended:
            if started is None and self.step in run.started:
                started = time.monotonic()
            if self.pattern and started and set(root.glob(self.pattern)) - self.known:
                time.sleep(self.seconds)
                return True
            if not self.pattern and started and time.monotonic() - started >= self.seconds:
                return True
            time.sleep(POLL_SECONDS)
        return False


def draw(random_: random.Random, durations: dict[str, float], steps: list[str]) -> Moment:
    """A moment in one of the next steps; half of them when a file appears, if the step writes any."""
    coming = steps[:NUM_COMING]
    step = random_.choices(coming, [WEIGHTS.get(step, 1) for step in coming])[0]
    if step in FILES and random_.random() < 0.5:
        return Moment(step, random_.uniform(0, 0.003), random_.choice(FILES[step]))
    return Moment(step, random_.uniform(0, durations[step]))
