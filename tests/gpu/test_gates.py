"""Gates on a GPU: as commands, whose measuring processes are forked, with the numbers of the same gates on the CPU."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from posttrain.config import CheckAlignmentStep, CheckMergeStep, CheckSftStep
from posttrain.merge import merge
from posttrain.verdict import Verdict
from tests.gpu.conftest import NO_GPU
from tests.stages import CONFIGS, train

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

ANSWERS = {"answer_match": "none", "num_generated_answers": 4, "max_new_tokens": 8, "confidence": 0.5}
SAFETY = {"judge": "closed_form", "skills": ["arithmetic"], "skill_rows": 4}
OUTPUTS = ("verdict", "report", "summary", "metrics", "passed")

Gate = tuple[str, object, dict[str, Path], tuple[str, ...]]  # step, its configuration, inputs, outputs


@pytest.fixture(scope="module")
def gates(tiny_model: Path, rows, task_api_files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Gate]:
    """Module of each gate with a model -> its command, on an adapter that was trained here."""
    folder = tmp_path_factory.mktemp("trained")
    train("sft", tiny_model, rows, folder)
    adapter, training = folder / "out" / "adapter", folder / "out" / "metrics"
    merge(tiny_model, adapter, folder / "model")
    prompts = {f"{kind}_prompts": str(task_api_files / f"{kind}.jsonl") for kind in ("red_team", "off_topic")}
    alignment = CheckAlignmentStep.model_validate({"validation": ANSWERS | SAFETY | prompts})
    sft = CheckSftStep.model_validate({"validation": ANSWERS, "sft": CONFIGS["sft"].model_dump(mode="json")})
    trained = {"base": tiny_model, "adapter": adapter}
    held_out = Path(rows["sft"]["eval"])
    judged = {"before": tiny_model, "model": folder / "model", "sft-eval": held_out}
    return {
        "sft": ("check_sft", sft, trained | {"training": training, "eval": held_out}, (*OUTPUTS, "answers")),
        "merge": ("check_merge", CheckMergeStep(), trained | {"model": folder / "model", "eval": held_out}, OUTPUTS),
        "alignment": ("check_alignment", alignment, judged, (*OUTPUTS, "answers", "confusion")),
    }


@pytest.fixture(scope="module")
def verdict(gates: dict[str, Gate], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Verdict]:
    """Runs every gate on both devices at once, and gives the verdict of one."""
    folder = tmp_path_factory.mktemp("gates")

    def run(place: tuple[str, str]) -> Verdict:
        name, device = place
        step, config, inputs, outputs = gates[name]
        own = folder / device / name
        own.mkdir(parents=True)
        paths = inputs | {output: own / output for output in outputs} | {"storage-root": own / "store"}
        flags = [part for flag, path in paths.items() for part in (f"--{flag}", str(path))]
        settings = json.dumps(config.model_dump(mode="json", exclude_none=True))
        command = [sys.executable, "-m", f"validators.{name}", "--step", step, "--config", settings, *flags]
        env = os.environ | (NO_GPU if device == "cpu" else {})
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return Verdict.read((own / "verdict").read_bytes())

    places = [(name, device) for name in gates for device in ("gpu", "cpu")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = dict(zip(places, pool.map(run, places), strict=True))
    return lambda name, device: verdicts[name, device]


@pytest.mark.parametrize("name", ["sft", "merge", "alignment"])
def test_a_gate_makes_the_same_checks_as_on_the_cpu(verdict, name):
    gpu, cpu = verdict(name, "gpu"), verdict(name, "cpu")
    assert [check.name for check in gpu.checks] == [check.name for check in cpu.checks]
    assert gpu.subject == cpu.subject


@pytest.mark.parametrize(
    ("name", "number"),
    [("sft", "held_out_loss"), ("sft", "base_held_out_loss"), ("merge", "adapter_loss"), ("merge", "merged_loss")],
)
def test_a_gate_measures_what_it_does_on_the_cpu(verdict, name, number):
    gpu, cpu = verdict(name, "gpu").numbers, verdict(name, "cpu").numbers
    assert gpu[number] == pytest.approx(cpu[number], rel=0.02, abs=1e-3)


def test_the_merge_gate_finds_nothing_wrong_on_a_gpu(verdict):
    """Rounding to 16 bits makes base plus adapter and the merged weights differ, by less than the limits allow."""
    checks = verdict("merge", "gpu").checks
    assert [check.name for check in checks if check.status == "failed"] == []  # 4 rows leave some undecided
