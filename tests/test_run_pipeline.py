"""From the command line to the exit code: real graph, record, publishing and report; the work is stood in for."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import run_pipeline
from posttrain import report
from posttrain.config import PipelineConfig, ReportStep
from posttrain.step import records
from posttrain.verdict import Verdict
from runner import claim, exit_codes, here, parameters
from runner.local import ROOT, GraphRun

# Stands for every module that fetches, trains, merges or judges: instant work inside the real run record.
STAND_IN = """
import json, os, sys
from pathlib import Path
from posttrain import config
from posttrain.step import digests, frame, kfp_io
from posttrain.step import settings as stored
from posttrain.verdict import Verdict, at_most, holds

args, rest = kfp_io.parser(__spec__.name).parse_known_args()
plan = json.loads(os.environ.get("PLAN", "{}")).get(args.step)
if plan == "crash":
    sys.exit("ImportError: no such library")
wanted = json.loads(args.executor_input)
paths = lambda side: {name: found["artifacts"][0]["uri"] for name, found in wanted[side].get("artifacts", {}).items()}
inputs, outputs = paths("inputs"), paths("outputs")
gate = args.step.startswith("check_")
args.confusion = outputs.get("confusion")

def work(_):
    for name, path in outputs.items():
        Path(path).mkdir() if name == "model" else None
        file = Path(path, "weights") if name == "model" else Path(path)
        file.write_text(f"{name} of {args.step}")
    if not inputs:
        return {"source": f"address of {args.step}", "digest": "0" * 64}
    if not gate:
        return {"final_loss": 0.5} if args.step.startswith("train_") else {}
    unsure = {"interval": (0.1, 3.0), "more_rows": 41} if plan == "unsure" else {}
    loss = at_most("held_out_loss", 9.0 if plan == "fail" else 0.5, 2.0, remedy="Train longer.", **unsure)
    detail = chr(27) + "[2J" if plan else ""
    subject = {name: digests.digest(path) for name, path in inputs.items()}
    verdict = Verdict(
        gate=args.step, subject=subject, checks=[holds("rows_readable", not plan, detail=detail), loss],
        numbers={"follows_promotion": 0},
    )
    if plan == "unsure":
        verdict = verdict.model_copy(update={"checks": (holds("rows_readable", True), loss)})
    Path(outputs["verdict"]).write_text(verdict.model_dump_json(indent=2))
    if args.confusion:
        Path(args.confusion).write_text('{"categories": [], "matrix": []}')
    return {"passed": verdict.passed}

if args.step == "preflight":
    stored.write(args.storage_root, config.table.settings_of(json.loads(args.config)))
if args.step.startswith("train_"):
    print("INFO: step 4/4 loss 0.5", file=sys.stderr)
settings = config.parse_step(config.CheckSftStep if gate else config.StepSection, "{}", args.overrides)
frame.run_step(args, inputs=inputs, outputs=outputs, config=settings, work=work)
"""
OWN_ROOT = ("--set", "publish_root=null")  # the model is published into the storage root
STAND_INS = ["posttrain.preflight", "posttrain.model", "posttrain.data", "posttrain.sft", "posttrain.merge"] + [
    f"validators.{name}" for name in ("data", "sft", "merge", "alignment", "champion")
]
STEPS = 13  # of the graph without DPO, the exit task included


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with a configuration, data and a model; steps find the stand-ins before the real modules."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    save_file({"lm_head.weight": np.zeros((2, 2), np.float32)}, tmp_path / "model" / "model.safetensors")
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(40)]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "pipeline_id": "demo", "base_model": "model", "sft_dataset": "sft.jsonl", "storage_root": "store",
        "stages": {"dpo": {"enabled": False}},
        "validation": {"answer_match": "none", "custom_checks": ["output_format_valid"]},
        "publish_root": "store/published",
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    for package in ("posttrain", "validators"):
        (tmp_path / "code" / package).mkdir(parents=True)
        (tmp_path / "code" / package / "__init__.py").write_text(f"__path__.append({str(ROOT / package)!r})")
    for module in STAND_INS:
        (tmp_path / "code" / module.replace(".", "/")).with_suffix(".py").write_text(STAND_IN)
    in_its_folder = functools.partial(GraphRun, working_directory=tmp_path / "code")
    monkeypatch.setattr(here, "GraphRun", in_its_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*more: str) -> int:
    return run_pipeline.main(["--config", "config.yaml", "--run-id", "r1", *more])


def result(project: Path, run_id: str = "r1") -> dict:
    return json.loads((project / "store" / "runs" / run_id / "pipeline_result.json").read_text())


def told_ci(file: Path) -> Counter:
    """Elements of the JUnit XML."""
    return Counter(element.tag for element in ElementTree.parse(file).iter())


def value(out: str, key: str) -> str:
    """The value of the last `key: value` line."""
    return re.findall(rf"^{key}: +(.*)$", out, re.MULTILINE)[-1]


def test_a_promoted_run_and_a_second_that_reuses_it(project, capsys):
    assert start("--junit", "ci/gates.xml") == exit_codes.PROMOTED
    out = capsys.readouterr().out
    assert value(out, "Run") == "r1"
    assert value(out, "Base model") == str(project / "model")
    assert value(out, "Success") == "yes"
    assert value(out, "Stages completed") == "sft, merge"
    assert value(out, "Errors") == "none"
    assert "Reused" not in out
    published = Path(value(out, "Final model"))
    assert (published / "manifest.json").is_file()
    assert value(out, "Made current") == "yes"
    assert json.loads((published.parent / "CURRENT").read_text())["by"] == "r1"
    assert "step 4/4 loss 0.5" in out
    assert told_ci(project / "ci" / "gates.xml").keys().isdisjoint({"failure", "error", "skipped"})
    outcome = result(project)
    assert outcome["success"] is True
    assert outcome["final_model_path"] == value(out, "Final model")
    assert [step["status"] for step in outcome["steps"]] == ["succeeded"] * (STEPS - 1)
    folder = project / "store" / "runs" / "r1"
    for name in ("report.html", "graph.yaml", "logs/train_sft.log", "check_sft/verdict.json", "check_sft/verdict.html"):
        assert (folder / name).is_file(), name
    assert (project / "store" / "artifacts" / "r1" / "train_sft" / "adapter").is_file()

    assert start("--run-id", "r2", "--set", "save_intermediate=false") == exit_codes.PROMOTED
    out = capsys.readouterr().out
    reused = value(out, "Reused").split(", ")
    assert {"train_sft", "merge_sft", "check_sft"} <= set(reused)
    assert {"publish_model", "promote_model"}.isdisjoint(reused)
    assert [file.name for file in (published.parent / "promotions").iterdir()] == ["000001.json"]
    assert not (project / "store" / "artifacts" / "r2").exists()


def test_a_gate_that_does_not_pass(project, capsys, monkeypatch):
    monkeypatch.setenv("PLAN", '{"check_sft": "fail"}')
    assert start("--junit", "gates.xml") == exit_codes.STOPPED
    out = capsys.readouterr().out
    assert value(out, "Success") == "no"
    assert value(out, "Final model") == "none"
    assert "STOPPED BY check_sft" in out
    assert value(out, "Outcome").startswith(
        "Stopped by rows_readable and 1 more. 2 of 2 checks did not pass: 2 failed."
    )
    assert re.findall("^Check: +(.*)$", out, re.MULTILINE) == ["rows_readable", "held_out_loss"]
    assert (value(out, "Status"), value(out, "Value"), value(out, "Limit")) == ("failed", "9", "≤ 2")
    assert value(out, "Seen") == "\\u{1b}[2J"  # never the character itself
    assert value(out, "Remedy") == "Train longer."
    assert value(out, "Checks passed") == "0 of 2"
    assert "Errors" not in out  # the checks are told once
    assert "reject_sft" not in out  # the line of its gate tells all of it
    assert "\x1b" not in out
    assert not Verdict.read(Path(value(out, "Verdict")).read_bytes()).passed
    assert Path(value(out, "Page")).is_file()
    assert Path(value(out, "As Markdown")).is_file()
    assert not (project / "store" / "published").exists() or not any((project / "store" / "published").iterdir())
    assert result(project)["stopped_by"] == "check_sft"
    told = told_ci(project / "gates.xml")
    assert (told["failure"], told["error"], told["skipped"]) == (3, 0, 3)  # two checks and the run; gates behind it


def checkpoint(project: Path, run_id: str) -> Path:
    """A checkpoint that a training of this run has left."""
    file = project / f"store/checkpoints/train_sft/f/step-00000004/{run_id}-01234567/COMPLETE.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    return file


@pytest.mark.long
def test_a_model_that_is_published_and_not_made_current(project, capsys, monkeypatch):
    """Whatever was trained stays until a model is current."""
    kept, removed = checkpoint(project, "r1"), checkpoint(project, "r2")
    monkeypatch.setenv("PLAN", '{"check_champion": "fail"}')
    assert start("--set", "save_intermediate=false") == exit_codes.STOPPED
    out = capsys.readouterr().out
    published = Path(value(out, "Final model"))
    assert (value(out, "Success"), value(out, "Made current")) == ("no", "no")
    assert (published / "manifest.json").is_file()
    assert [path.name for path in published.parent.iterdir()] == [published.name]
    assert result(project)["outcome"] == "stopped"
    assert (project / "store" / "artifacts" / "r1" / "train_sft" / "adapter").is_file()

    monkeypatch.delenv("PLAN")
    assert start("--run-id", "r2", "--set", "save_intermediate=false") == exit_codes.PROMOTED
    assert (kept.exists(), removed.exists()) == (True, False)
    assert value(capsys.readouterr().out, "Made current") == "yes"


def test_a_line_that_only_publishes(project, capsys):
    removed = checkpoint(project, "r1")
    assert start("--set", "promote=false", "--set", "save_intermediate=false") == exit_codes.PROMOTED
    assert not removed.exists()
    published = Path(value(out := capsys.readouterr().out, "Final model"))
    assert "Made current" not in out
    assert [path.name for path in published.parent.iterdir()] == [published.name]


def test_a_gate_that_cannot_decide(project, capsys, monkeypatch):
    monkeypatch.setenv("PLAN", '{"check_sft": "unsure"}')
    assert start("--junit", "gates.xml") == exit_codes.STOPPED
    out = capsys.readouterr().out
    assert re.search(r"check_sft +undecided ", out)
    assert value(out, "Outcome").startswith("Undecided: about 41 more rows would decide.")
    assert (value(out, "Status"), value(out, "Interval")) == ("undecided", "0.1 to 3")
    assert value(out, "Checks passed") == "1 of 2"
    assert result(project)["outcome"] == "undecided"
    root = ElementTree.parse(project / "gates.xml")
    assert [failure.get("type") for failure in root.iter("failure")] == ["undecided", "undecided"]


def test_a_step_that_dies_without_a_word_in_the_record(project, capsys, monkeypatch):
    monkeypatch.setenv("PLAN", '{"train_sft": "crash"}')
    assert start("--junit", "gates.xml") == exit_codes.ERROR
    assert value(capsys.readouterr().out, "Errors") == "train_sft: ImportError: no such library"
    assert told_ci(project / "gates.xml")["error"] == 1
    (died,) = (entry for entry in records.read_records("store", "r1") if entry.step == "train_sft")
    assert died.error == "ImportError: no such library"
    assert result(project)["errors"] == ["train_sft: ImportError: no such library"]


def test_nothing_else_runs_where_preflight_fails(project, capsys, monkeypatch):
    """On a cluster, where nobody has asked the same before the start."""
    monkeypatch.setenv("PLAN", '{"preflight": "crash"}')
    assert start() == exit_codes.ERROR
    out = capsys.readouterr().out
    assert re.search(r"preflight +failed ", out)
    assert value(out, "Errors") == "preflight: ImportError: no such library"
    assert {path.stem for path in (project / "store" / "runs" / "r1" / "logs").iterdir()} == {"preflight", "report_run"}
    assert {step["status"] for step in result(project)["steps"][1:]} == {"not run"}


def test_the_word_of_the_runner_promotes_nothing(project, capsys, monkeypatch):
    """Neither branch of a gate has run, and the runner calls that a success."""
    monkeypatch.setattr(here, "run_graph", lambda *_: True)
    assert start() == exit_codes.ERROR
    assert "preflight: left no record" in value(capsys.readouterr().out, "Errors")


def test_why_the_graph_did_not_go_on_is_told(project, capsys, monkeypatch):
    def unresolved(path, parameters, run):
        run.errors.append("condition: pipelinechannel--check-data-passed has no value")
        return False

    monkeypatch.setattr(here, "run_graph", unresolved)
    assert start() == exit_codes.ERROR
    assert "check-data-passed has no value" in result(project)["errors"][-1]


def test_an_interrupt_leaves_a_result(project, capsys, monkeypatch):
    def interrupted(path, parameters, run):
        run.listener.started("preflight")
        raise KeyboardInterrupt

    monkeypatch.setattr(here, "run_graph", interrupted)
    assert start("--junit", "gates.xml") == exit_codes.INTERRUPTED
    out = capsys.readouterr().out
    assert out.endswith(
        "\nInterrupted (Ctrl-C) in preflight. To continue, run:\n"
        "python run_pipeline.py --config config.yaml --junit gates.xml\n"
    )
    assert "Errors" not in out  # said once
    assert result(project)["errors"] == ["preflight: interrupted"]
    assert ElementTree.parse(project / "gates.xml").find(".//error").text == "preflight: interrupted"


def test_an_interrupt_before_the_first_step_is_not_taken_for_a_step_that_was_killed(project, capsys, monkeypatch):
    def interrupted(path, parameters, run):
        raise KeyboardInterrupt("SIGTERM")

    monkeypatch.setattr(here, "run_graph", interrupted)
    assert run_pipeline.main(["--config", "config.yaml"]) == exit_codes.INTERRUPTED
    out = capsys.readouterr().out
    assert out.endswith(
        "\nInterrupted (SIGTERM) in preflight. To continue, run:\npython run_pipeline.py --config config.yaml\n"
    )
    assert "Errors" not in out
    assert result(project, value(out, "Run"))["errors"] == ["preflight: interrupted"]


def test_a_gate_whose_process_dies_is_an_error_in_ci(project, monkeypatch):
    monkeypatch.setenv("PLAN", '{"check_sft": "crash"}')
    assert start("--junit", "gates.xml") == exit_codes.ERROR
    suite = ElementTree.parse(project / "gates.xml").find("testsuite[@name='check_sft']")
    assert suite.find("testcase/error").text == "ImportError: no such library"


def test_ci_is_never_left_with_the_green_file_of_an_earlier_run(project, monkeypatch, capsys):
    (project / "gates.xml").write_text("<testsuites/>")
    assert start("--junit", "gates.xml", "--config", "none.yaml") == exit_codes.ERROR
    assert "none.yaml" in ElementTree.parse(project / "gates.xml").find(".//error").text

    def killed(*_):
        raise SystemExit(9)

    monkeypatch.setattr(here, "run_graph", killed)
    with pytest.raises(SystemExit):
        start("--junit", "gates.xml")
    assert told_ci(project / "gates.xml")["error"] == 1


def test_a_junit_file_that_cannot_be_written_is_told_before_anything_runs(project, capsys):
    assert start("--junit", "/proc/none/gates.xml") == exit_codes.ERROR
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch("error: .*/proc/none.*\n", told.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "none.yaml"], "none.yaml"),
        (["--set", "validation.max_los=1"], "max_los: unknown key"),
        (["--set", "validation.max_loss=-1"], "validation.max_loss"),
        (["--set", "validation.check_nan=false"], "check_nan"),
        (["--overrides", "{"], "--overrides: '{' is not JSON"),
        (["--overrides", "[]"], "not a JSON object"),
        (["--overrides", '{"sft": {"epochs": 1, "epochs": 9}}'], "--overrides: 'sft.epochs' appears twice"),
        (["--overrides", '{"sft": {"learning_rate": NaN}}'], "--overrides: 'sft.learning_rate' is NaN"),
        (["--overrides", '{"sft": ' + "[" * 9999], "--overrides: JSON with more than 200 levels"),
        (["--overrides", '{"validation": {}}'], "cannot be changed by a run"),
        (["--base-model", "org/{{model}}"], "{{"),
        (["--base-model", "ftp://host/model"], "error: base_model: 'ftp://host/model' is not an address"),
        (["--set", "validation.red_team_prompts=ftp://x/y"], "error: validation.red_team_prompts: 'ftp://x/y' is not"),
        (["--set", "publish_root=ftp://x/y"], "error: publish_root: 'ftp://x/y' is not an address"),
        (["--storage-root", "gs://elsewhere/x", *OWN_ROOT], "none of the allowed prefixes"),
        (["--storage-root", "sft.jsonl/store", *OWN_ROOT], "cannot write"),
        (["--run-id", "../r1"], "is not a name"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(project, capsys, arguments, message):
    assert start(*arguments) == exit_codes.ERROR
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(r"error: .*\n", told.err)
    assert message in told.err
    assert not list(project.glob("store/*/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sft-dataset", "data/none.jsonl"], "/data/none.jsonl.*"),
        (["--base-model", "./nowhere"], "base_model: '/.*/nowhere' does not exist; give a model's folder, .*"),
    ],
)
def test_bad_input_that_the_first_step_finds_is_one_line_of_the_result(project, capsys, arguments, message):
    for module in ("preflight", "model", "data"):  # the real ones
        (project / "code" / "posttrain" / f"{module}.py").unlink()
    assert start(*arguments) == exit_codes.ERROR
    told = capsys.readouterr()
    assert re.fullmatch(f"preflight: ValueError: .*{message}", value(told.out, "Errors"))
    assert told.err == ""
    assert {path.stem for path in (project / "store" / "runs" / "r1" / "logs").iterdir()} == {"preflight", "report_run"}


def test_an_id_that_another_machine_takes_at_the_same_moment_is_refused_before_anything_is_written(
    project, capsys, monkeypatch
):
    unused = here.new_run_id

    def meanwhile(storage_root: str, wanted: str) -> str:
        run_id = unused(storage_root, wanted)
        claim.take(storage_root, run_id)
        return run_id

    monkeypatch.setattr(here, "new_run_id", meanwhile)
    assert start() == exit_codes.ERROR
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(r"error: --run-id 'r1' was taken in .* by process \d+ on .*; choose another id: .*\n", told.err)
    assert [path.name for path in (project / "store" / "runs" / "r1").iterdir()] == ["claims"]


def test_an_id_whose_run_was_killed_before_its_first_step_runs_again(project, monkeypatch):
    folder = project / "store" / "runs" / "r1"
    replace(claim.take(str(project / "store"), "r1"), written_at=0).write()
    settings = ReportStep(pipeline_id="toy", steps=["preflight"])
    (folder / "RUNNING").write_text(settings.model_dump_json())
    results = []
    monkeypatch.setattr(here, "run_graph", lambda *_: results.extend(folder.glob(report.RESULT)))
    start()
    assert results == [] and (folder / report.RESULT).exists()  # its own, not one of a run that was killed
    assert sorted(path.name for path in (folder / "claims").iterdir()) == ["run.1.json", "run.2.json"]


def test_who_starts_a_run_that_publishes_elsewhere_cannot_bring_records_of_gates(project, capsys):
    assert start("--storage-root", "mine") == exit_codes.ERROR
    assert "mine' is not a storage root that this graph was compiled for" in capsys.readouterr().err
    assert not (project / "mine").exists() and not (project / "store").exists()


@pytest.mark.long
def test_a_run_that_publishes_to_its_own_storage_root_may_choose_it(project, capsys):
    assert start("--storage-root", "mine", *OWN_ROOT) == exit_codes.PROMOTED
    assert str(project / "mine") in value(capsys.readouterr().out, "Final model")


def test_what_a_gate_asks_is_found_from_the_steps_own_folder():
    keys = {"red_team_prompts": "r.jsonl", "off_topic_prompts": "gs://b/o.jsonl", "judge_model": "./judge"}
    found = parameters.absolute_paths(PipelineConfig(validation=keys)).validation
    assert (found.red_team_prompts, found.off_topic_prompts) == (str(Path("r.jsonl").absolute()), "gs://b/o.jsonl")
    assert (found.judge_model, found.benign_prompts) == (str(Path("judge").absolute()), None)
    matched = PipelineConfig(validation={"match_options": {"judge_model": "./chat"}})
    assert parameters.absolute_paths(matched).validation.match_options.judge_model == str(Path("chat").absolute())
    tasks = PipelineConfig(validation={"lm_eval_tasks": ["sums"], "lm_eval_data": "tasks"})
    assert parameters.absolute_paths(tasks).validation.lm_eval_data == str(Path("tasks").absolute())
    on_the_hub = PipelineConfig(validation={"judge_model": "meta-llama/Llama-Guard-3-8B"})
    assert parameters.absolute_paths(on_the_hub).validation.judge_model == "meta-llama/Llama-Guard-3-8B"


def test_a_run_id_with_a_record_is_refused(project, capsys):
    (project / "store" / "runs" / "r1").mkdir(parents=True)
    (project / "store" / "runs" / "r1" / "publish_model.1.json").write_text("{}")
    assert start() == exit_codes.ERROR
    assert "has a record" in capsys.readouterr().err


def test_the_command_line_alone_imports_nothing_that_takes_time():
    code = "import sys; before = set(sys.modules); import run_pipeline; print(*(set(sys.modules) - before))"
    names = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name.partition(".")[0] for name in names.split()} - sys.stdlib_module_names == {"run_pipeline", "runner"}


@pytest.mark.parametrize(
    "moment", ["yaml", "pydantic", "posttrain.report", "kfp.dsl", "kubernetes.client", "runner.here"]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupt_while_it_imports_is_quiet(project, moment, number):
    """Sent when the module has been imported, as `-X importtime` tells line by line."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "run_pipeline.py"), "--config", "config.yaml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.rpartition("|")[2].strip() == moment:
                process.send_signal(number)
                break
        lines = [line for line in process.stderr if not line.startswith("import time:")]
        told = process.stdout.read()
    name = "Ctrl-C" if number == signal.SIGINT else "SIGHUP"
    # A little later, what runs by then is interrupted, and the text stands apart from its output.
    again = "python run_pipeline.py --config config.yaml"
    assert told.lstrip("\n") == f"Interrupted ({name}). To continue, run:\n{again}\n"
    assert (process.returncode, lines) == (exit_codes.INTERRUPTED, [])
    assert not (project / "store").exists()


SCRIPT = (
    "import functools, sys, run_pipeline; from pathlib import Path; from runner import here; "
    "here.GraphRun = functools.partial(here.GraphRun, working_directory=Path('code').absolute()); "
    "sys.exit(run_pipeline.main(['--config', 'config.yaml', '--run-id', 'r1']))"
)


def process_of_a_run(**streams) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-u", "-c", SCRIPT], stdout=subprocess.PIPE, text=True, env=environment, **streams
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.long)])
def test_a_run_that_is_told_to_end_ends_with_all_its_processes(project, number):
    (project / "code" / "posttrain" / "sft.py").write_text(
        "import signal, sys, time\nfrom pathlib import Path\n"
        "def save(*_):\n    time.sleep(0.3)\n    Path('saved').touch()\n    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save)\nprint('step 1/9', file=sys.stderr, flush=True)\ntime.sleep(99)"
    )
    process = process_of_a_run()
    for line in process.stdout:
        if "train_sft" in line:
            wait_for_line(project / "store" / "runs" / "r1" / "logs" / "train_sft.log", "step 1/9")
            process.send_signal(number)
            if number == signal.SIGHUP:  # from the shell too; and the terminal is gone
                process.stdout.close()
                process.send_signal(number)
            break
    if number == signal.SIGTERM:
        assert process.stdout.read().endswith("To continue, run:\npython run_pipeline.py --config config.yaml\n")
    assert process.wait() == exit_codes.INTERRUPTED
    process.stdout.close()
    assert (project / "code" / "saved").exists()
    assert result(project)["errors"] == ["train_sft: interrupted"]
    assert str(project) not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout


def wait_for_line(file: Path, text: str) -> None:
    until = time.monotonic() + 30
    while not (file.exists() and text in file.read_text()) and time.monotonic() < until:
        time.sleep(0.05)


@pytest.mark.long
def test_a_run_goes_on_without_its_viewer(project):
    process = process_of_a_run(stderr=subprocess.PIPE)
    assert process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == exit_codes.PROMOTED
    assert result(project)["success"] is True
