"""Stands for the steps of a trial: a training or a gate that ends as the learning rate of the overrides says."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from posttrain.config.section import Section
from posttrain.step import frame, kfp_io
from posttrain.train.checkpoints import Diverged
from posttrain.verdict import Verdict, at_most

RATES = {"diverges": 0.9, "runs out of memory": 0.8, "is killed": 0.7, "breaks": 0.6, "hangs": 0.55,
         "fails its gate": 0.5}  # fmt: skip


class Settings(Section):
    overrides: dict


def work(args, rate: float) -> dict:
    if "train" in args.step:
        if rate == RATES["diverges"]:
            raise Diverged("diverged at step 3/9")
        if rate == RATES["runs out of memory"]:
            raise MemoryError("DefaultCPUAllocator: can't allocate memory")
        if rate == RATES["is killed"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if rate == RATES["breaks"]:
            raise ValueError("rows are broken")
        if rate == RATES["hangs"]:
            time.sleep(60)
        Path(args.adapter).write_text(str(rate))
        return {}
    rows = Path(args.eval).read_text()
    check = at_most("held_out_loss", rate, 0.45, interval=(rate - 0.01, rate + 0.01), detail=rows)
    verdict = Verdict(gate=args.step, subject={}, checks=(check,), numbers={"num_held_out_rows": float(len(rows))})
    Path(args.verdict).write_text(verdict.model_dump_json())
    return {"passed": verdict.passed}


def main() -> None:
    parser = kfp_io.parser(__spec__.name, __doc__)
    for name in ("adapter", "eval", "verdict", "passed"):
        parser.add_argument(f"--{name}")
    args = parser.parse_args()
    settings = Settings(overrides=json.loads(args.overrides))
    outputs = {name: getattr(args, name) for name in ("adapter", "verdict") if getattr(args, name)}
    if "train" not in args.step:
        outputs.pop("adapter", None)
    rate = settings.overrides["sft"]["learning_rate"]
    frame.run_step(args, inputs={"eval": args.eval}, outputs=outputs, config=settings, work=lambda _: work(args, rate))


if __name__ == "__main__":
    sys.exit(main())
