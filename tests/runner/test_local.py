"""The compiled graph, run with tiny stand-ins for the modules: which steps run, and how a run ends."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kfp import compiler, dsl
from kfp.local import io, task_dispatcher

from pipelines.compiler import compile_graph
from pipelines.package import Package
from pipelines.steps import step_names
from posttrain.config import PipelineConfig, Validation
from runner import local, walk

# Stands for every module of the images: writes each output, or misbehaves as PLAN says for its step.
STAND_IN = """
import json, os, pathlib, signal, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
step, wanted = flags["--step"], json.loads(flags["--executor-input"])
plan = json.loads(os.environ.get("PLAN", "{}")).get(step, "")
attempts = pathlib.Path(os.environ["ATTEMPTS"]) / step
attempts.mkdir(parents=True, exist_ok=True)
attempt = len(list(attempts.iterdir())) + 1
(attempts / str(attempt)).write_text(json.dumps({"flags": flags, "run": os.environ["KFP_RUN_ID"], "input": wanted}))
print("on stdout from", step)
if step.startswith("train_"):
    for at in (1, 2):
        print(f"2026-01-01 INFO posttrain: step {at}/2 loss 0.{at}", file=sys.stderr)
if plan == "crash":
    sys.exit(f"ValueError: {step} is broken")
if plan == "killed" or (plan == "killed once" and attempt == 1):
    os.kill(os.getpid(), signal.SIGKILL)
if plan == "lost once" and attempt == 1:
    os.kill(os.getppid(), signal.SIGKILL)
if plan == "hang":
    time.sleep(600)
if step.startswith("reject_"):
    sys.exit("rejected")
if plan == "dies at once":
    sys.exit()
if plan.startswith("waits for "):
    others = [pathlib.Path(os.environ["ATTEMPTS"]) / other for other in plan.split()[2:]]
    until = time.monotonic() + 60
    while not all(other.exists() for other in others):
        if time.monotonic() > until:
            sys.exit(f"{step} was alone")
        time.sleep(0.01)
    plan = ""
outputs = wanted.get("outputs", {})
pathlib.Path(outputs["outputFile"]).write_text("{}")
for artifacts in outputs.get("artifacts", {}).values():
    pathlib.Path(artifacts["artifacts"][0]["uri"]).write_text(f"made by {step}")
for name, parameter in outputs.get("parameters", {}).items():
    if plan != "silent":
        pathlib.Path(parameter["outputFile"]).write_text(plan or "true")
if plan == "metadata":
    made = {name: {"artifacts": [{"name": name, "uri": a["artifacts"][0]["uri"], "metadata": {"sha256": "abc"}}]}
            for name, a in outputs["artifacts"].items()}
    pathlib.Path(outputs["outputFile"]).write_text(json.dumps({"artifacts": made}))
"""

PARAMETERS = {
    "base_model": "base", "sft_dataset": "s", "preference_dataset": "p", "storage_root": "/r", "model_name": "m",
    "overrides": {"sft": {"epochs": 1, "target_modules": ["a'b", 'c"d']}},
}  # fmt: skip
STEPS = step_names(PipelineConfig())
GATES = [name for name in STEPS if name.startswith("check_")]


@dataclass
class Heard:
    """A listener that keeps what it is told."""

    started_steps: list[str] = field(default_factory=list)
    lines: list[tuple] = field(default_factory=list)
    causes: dict[str, str | None] = field(default_factory=dict)

    def started(self, step):
        self.started_steps.append(step)

    def progress(self, step, done, total, text):
        self.lines.append((step, done, total, text))

    def tried_again(self, step, text):
        self.lines.append((step, text))

    def finished(self, step, exit_code, seconds, cause):
        self.causes[step] = cause


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "graph.yaml"
    compile_graph(
        PipelineConfig(validation=Validation(answer_match="none", custom_checks=["output_format_valid"])), path
    )
    return path


@pytest.fixture
def play(tmp_path, graph):
    """Runs a graph with stand-ins and gives (the runner's word, what was heard, the run)."""

    def run(plan=None, path=graph, parameters=PARAMETERS, heard=None):
        for package, module in set(re.findall(r"^ +- (posttrain|validators)\.(\w+)$", path.read_text(), re.MULTILINE)):
            folder, real = tmp_path / "code" / package, local.ROOT / package
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").write_text(f"__path__.append({str(real)!r})\n")  # the real ones beside them
            (folder / f"{module}.py").write_text(STAND_IN)
        heard = heard or Heard()
        run = local.GraphRun(
            "run-1", artifacts=tmp_path / "artifacts", logs=tmp_path / "logs", listener=heard,
            working_directory=tmp_path / "code",
            environment={"PLAN": json.dumps(plan or {}), "ATTEMPTS": str(tmp_path / "attempts")},
        )  # fmt: skip
        return local.run_graph(path, parameters, run), heard, run

    return run


def attempt(tmp_path: Path, step: str, number: int = 1) -> dict:
    return json.loads((tmp_path / "attempts" / step / str(number)).read_text())


def test_every_gate_passing_runs_every_step_once_in_order(play, graph, tmp_path):
    worked, heard, run = play({"fetch_model": "metadata"})
    assert worked
    assert run.errors == []
    assert set(heard.started_steps) == {*STEPS, "report_run"}
    assert len(heard.started_steps) == len(STEPS) + 1
    for before, after in [
        ("check_data", "train_sft"),
        ("check_sft_merge", "train_dpo"),
        ("publish_model", "report_run"),
    ]:
        assert heard.started_steps.index(before) < heard.started_steps.index(after)
    assert ("train_dpo", 2, 2, "loss 0.2") in heard.lines
    assert attempt(tmp_path, "train_sft")["run"] == "run-1"
    assert "on stdout from train_sft" in (run.logs / "train_sft.log").read_text()
    assert "step 2/2 loss 0.2" in (run.logs / "train_sft.log").read_text()

    # arguments as the backend gives them
    flags = attempt(tmp_path, "train_sft")["flags"]
    assert json.loads(flags["--overrides"])["sft"]["target_modules"] == ["a'b", 'c"d']
    config = attempt(tmp_path, "train_sft")["input"]["inputs"]["parameterValues"]["config"]
    assert Package.read(graph).settings[config["sha256"]]["sft"]["lora_r"] == 16
    assert Path(flags["--base"]).read_text() == "made by fetch_model"
    assert Path(flags["--adapter"]) == tmp_path / "artifacts" / "run-1" / "train_sft" / "adapter"
    assert attempt(tmp_path, "merge_dpo")["flags"]["--model"] != attempt(tmp_path, "merge_sft")["flags"]["--model"]
    assert json.loads(attempt(tmp_path, "report_run")["flags"]["--status"])["state"] == "SUCCEEDED"

    # an artifact's metadata reaches its consumer
    base = attempt(tmp_path, "train_sft")["input"]["inputs"]["artifacts"]["base"]["artifacts"][0]
    assert base["metadata"] == {"sha256": "abc"}
    assert base["type"]["schemaTitle"] == "system.Model"


FIRST, *LATER = GATES


@pytest.mark.parametrize("gate", [FIRST, *(pytest.param(gate, marks=pytest.mark.long) for gate in LATER)])
def test_a_gate_that_does_not_pass_stops_exactly_there(play, gate):
    worked, heard, _ = play({gate: "false"})
    reject = f"reject_{gate.removeprefix('check_')}"
    assert not worked
    assert set(heard.started_steps) == {*STEPS[: STEPS.index(gate) + 1], reject, "report_run"}
    assert heard.started_steps[-1] == "report_run"
    assert heard.causes[reject] == "rejected"


@pytest.mark.parametrize("said", ["NaN", "'true' or true"])
def test_what_is_no_boolean_passes_no_gate(play, said):
    worked, heard, run = play({"check_data": said})
    assert not worked
    assert "train_sft" not in heard.started_steps
    assert heard.started_steps[-1] == "report_run"
    assert run.errors


@pytest.mark.parametrize("value", [float("nan"), "true", "' == '' or '", 1, 1.0, None, {}, [True]])
@pytest.mark.parametrize("wanted", ["true", "false"])
def test_a_condition_takes_booleans_only(value, wanted):
    scope = io.IOStore()
    scope.put_task_output("check-data", "passed", value)
    with pytest.raises(walk.GraphError, match="not true or false"):
        walk.evaluate_condition(f"inputs.parameter_values['pipelinechannel--check-data-passed'] == {wanted}", scope)


def test_an_output_parameter_that_is_not_written_fails_the_step(play):
    worked, heard, run = play({"check_sft": "silent"})
    assert not worked
    assert "output parameter 'passed' was not written" in heard.causes["check_sft"]
    assert "merge_sft" not in heard.started_steps
    assert "reject_sft" not in heard.started_steps


@pytest.mark.parametrize("step", ["preflight", "train_sft"])
def test_a_step_that_ends_well_but_wrote_nothing_has_failed(play, step):
    worked, heard, run = play({step: "dies at once"})
    assert not worked
    assert heard.causes[step].startswith("exited 0, but nothing was written to")
    assert "publish_model" not in heard.started_steps


def test_a_crash_fails_the_run_at_once_and_its_last_line_is_the_cause(play, tmp_path):
    worked, heard, run = play({"train_sft": "crash"})
    assert not worked
    assert heard.causes["train_sft"] == "ValueError: train_sft is broken"
    assert run.errors == ["train_sft: ValueError: train_sft is broken"]
    assert heard.started_steps.count("train_sft") == 1  # another attempt would end the same way
    assert heard.started_steps[-1] == "report_run"
    assert json.loads(attempt(tmp_path, "report_run")["flags"]["--status"])["state"] == "FAILED"


def test_a_killed_step_is_tried_again_where_it_was(play, tmp_path):
    worked, heard, _ = play({"train_sft": "killed once"})
    assert worked
    assert ("train_sft", "attempt 2 of 3: ended by SIGKILL (out of memory?)") in heard.lines
    assert heard.started_steps.count("train_sft") == 1
    assert len(list((tmp_path / "attempts" / "train_sft").iterdir())) == 2


def test_a_step_that_is_killed_each_time_fails_the_run(play, tmp_path):
    worked, heard, _ = play({"train_sft": "killed"})
    assert not worked
    assert len(list((tmp_path / "attempts" / "train_sft").iterdir())) == 3  # retry_count of stage sft is 2
    assert heard.causes["train_sft"] == "3 attempts failed; the last one: ended by SIGKILL (out of memory?)"


def test_a_step_that_is_lost_with_what_makes_its_attempts_starts_again_without_waiting(play, monkeypatch):
    waited = []
    monkeypatch.setattr("kfp.local.orchestrator.task_executor.time.sleep", waited.append)
    worked, heard, _ = play({"train_sft": "lost once"})
    assert worked
    assert heard.started_steps.count("train_sft") == 2
    assert waited == [0.0]  # on a cluster 30 s


def test_a_condition_on_a_renamed_output_fails_the_run(play, graph, tmp_path):
    """kfp.local takes what it cannot resolve for false: both branches would be skipped and the run would be green."""
    text = graph.read_text()
    renamed = tmp_path / "renamed.yaml"
    renamed.write_text(text.replace("['pipelinechannel--check-sft-passed']", "['pipelinechannel--check-sft-approved']"))
    assert renamed.read_text() != text
    worked, heard, run = play(path=renamed)
    assert not worked
    assert "merge_sft" not in heard.started_steps
    assert heard.started_steps[-1] == "report_run"
    assert "pipelinechannel--check-sft-approved has no value" in run.errors[0]


def test_a_condition_in_another_form_is_never_evaluated(play, graph, tmp_path):
    other = tmp_path / "other.yaml"
    spec = graph.read_text().replace(
        "inputs.parameter_values['pipelinechannel--check-data-passed']\n              == true",
        "inputs.parameter_values['pipelinechannel--check-data-passed']\n              != false",
    )
    assert spec != graph.read_text()
    other.write_text(spec)
    worked, heard, run = play(path=other)
    assert not worked
    assert "train_sft" not in heard.started_steps
    assert "is not of the form" in run.errors[0]


def test_scopes_are_searched_from_the_inside_out():
    outer = io.IOStore()
    outer.put_task_output("check-data", "passed", True)
    inner = io.IOStore(parent=outer)
    condition = "inputs.parameter_values['pipelinechannel--check-data-passed'] == true"
    assert walk.evaluate_condition(condition, inner) is True
    inner.put_parent_input("pipelinechannel--check-data-passed", False)
    assert walk.evaluate_condition(condition, inner) is False


def test_two_values_under_one_name_are_refused():
    scope = io.IOStore()
    scope.put_task_output("check", "data-passed", True)
    scope.put_task_output("check-data", "passed", False)
    with pytest.raises(walk.GraphError, match="2 values"):
        walk.evaluate_condition("inputs.parameter_values['pipelinechannel--check-data-passed'] == true", scope)


def test_parameters_that_the_graph_does_not_have_are_refused(play):
    with pytest.raises(ValueError, match="base_modle: the graph has no such parameter; it has base_model"):
        play(parameters=PARAMETERS | {"base_modle": "x"})


def test_a_parameter_without_value_is_refused(play, tmp_path):
    @dsl.container_component
    def one(step: str):
        return dsl.ContainerSpec(image="none", command=["python", "-m", "posttrain.one"], args=["--step", step])

    @dsl.pipeline
    def needs(step: str):
        one(step=step)

    compiler.Compiler().compile(needs, str(tmp_path / "needs.yaml"))
    with pytest.raises(ValueError, match="step: the graph needs a value"):
        play(path=tmp_path / "needs.yaml", parameters={})


def test_kfp_is_as_it_was_after_a_run(play):
    before = task_dispatcher.run_single_task_implementation
    play({"check_data": "false"})
    assert task_dispatcher.run_single_task_implementation is before


def test_a_kfp_with_other_internals_is_refused(play, monkeypatch):
    monkeypatch.setattr(task_dispatcher, "run_single_task_implementation", lambda component_name: None)
    with pytest.raises(RuntimeError, match="run_single_task_implementation takes other arguments.*kfp==2.17.0"):
        play()
    monkeypatch.delattr(task_dispatcher, "run_single_task_implementation")
    with pytest.raises(RuntimeError, match="run_single_task_implementation any more.*kfp==2.17.0"):
        play()


def test_steps_that_do_not_wait_for_each_other_run_side_by_side(play):
    """Each of the three ends only once the other two have begun."""
    side_by_side = ["fetch_model", "prepare_preferences", "prepare_sft_data"]
    plan = {step: f"waits for {' '.join(side_by_side)}" for step in side_by_side}
    worked, heard, _ = play(plan | {"check_data": "false"})
    assert heard.started_steps[0] == "preflight"
    assert sorted(heard.started_steps[1:4]) == side_by_side
    assert heard.started_steps[4:] == ["check_data", "reject_data", "report_run"]
    assert not any(heard.causes[step] for step in side_by_side)


def test_one_of_them_that_fails_leaves_the_others_to_their_end(play):
    worked, heard, run = play({"fetch_model": "crash"})
    assert not worked
    assert heard.causes == {
        "preflight": None, "fetch_model": "ValueError: fetch_model is broken", "prepare_sft_data": None,
        "prepare_preferences": None, "report_run": None,
    }  # fmt: skip
    assert run.errors == ["fetch_model: ValueError: fetch_model is broken"]


def test_an_interrupt_ends_steps_that_run_side_by_side(play):
    together = threading.Barrier(3, action=lambda: os.kill(os.getpid(), signal.SIGINT))

    class Impatient(Heard):
        def started(self, step):
            super().started(step)
            if step in ("fetch_model", "prepare_sft_data", "prepare_preferences"):
                together.wait()

    heard = Impatient()
    with pytest.raises(KeyboardInterrupt):
        play({"fetch_model": "hang", "prepare_sft_data": "hang", "prepare_preferences": "hang"}, heard=heard)
    assert len(heard.started_steps) == 4
    mine = subprocess.run(["ps", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    assert f"{sys.executable} -m posttrain" not in mine


def test_an_interrupt_ends_the_step_and_all_that_it_started(play):
    class Impatient(Heard):
        def progress(self, step, done, total, text):
            if done == total:
                os.kill(os.getpid(), signal.SIGINT)

    heard = Impatient()
    with pytest.raises(KeyboardInterrupt):
        play({"train_sft": "hang"}, heard=heard)
    assert heard.started_steps[-1] == "train_sft"
    assert "time.sleep(600)" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    mine = subprocess.run(["ps", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    assert f"{sys.executable} -m posttrain.sft" not in mine


NOISY = "import sys\nfor at in range(4000): print(f'INFO x: step {at}/4000 loss 0.5', 'x' * 40, file=sys.stderr)"


class Deaf:
    """A listener that fails at the first line of progress."""

    def progress(self, *_) -> None:
        raise BrokenPipeError


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
@pytest.mark.timeout(30)
@pytest.mark.parametrize("listener", [None, Deaf()])
def test_a_step_whose_log_or_listener_fails_ends(listener, tmp_path, caplog, monkeypatch):
    """A pipe takes 64 KiB; these lines are four times as much."""
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    (tmp_path / "noisy.log").symlink_to("/dev/full")
    run = local.GraphRun("r", artifacts=tmp_path, logs=tmp_path, listener=listener or Heard())
    step = local.Step("noisy", "image", ["python", "-c", NOISY], {}, {}, tmp_path / "noisy", 0, {})
    exit_code, _ = local.Launcher(run, {}, {})._execute(step)
    assert exit_code == 0
    assert sum("noisy.log: lines are missing: No space left" in line for line in caplog.messages) == 1
