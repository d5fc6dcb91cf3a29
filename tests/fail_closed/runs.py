"""Runs the compiled graph with one gate's outcome: real runner, gate frame, reject, publish and report.

folder, shape, gate, outcome -> what ran and how the run ended

The gate is a process, forked from here: what Python and its imports cost is paid once. With `own_process` it is started
as the runner itself starts it. The other steps are called in this process.
"""

import contextlib
import copy
import functools
import gc
import importlib
import io
import json
import logging
import os
import sys
import threading
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from pipelines.compiler import compile_graph
from pipelines.steps import step_names
from posttrain import report
from posttrain.config import Export, PipelineConfig, Validation
from posttrain.step.code import code_of
from posttrain.step.records import read_records
from posttrain.verdict import Verdict, holds
from runner import here, local, request
from runner.request import RunRequest
from tests.fail_closed import steps
from tests.fail_closed.outcomes import OUTCOMES
from validators import page

ROOT = Path(__file__).parents[2]
RUN_ID = "r1"
SHAPES = {
    "full": {},
    "SFT only": {"dpo": {"enabled": False}},
    "DPO only": {"sft": {"enabled": False}},
    "pairs": {"pairs": {"enabled": True}},
    "exported": {},
}
STAND_INS = [
    f"posttrain.{name}" for name in ("preflight", "model", "data", "sft", "merge", "dpo", "serving.export")
] + [f"validators.{name}" for name in ("data", "sft", "merge", "sampling", "pairs", "alignment", "export", "champion")]
REAL = ["posttrain.publish", "posttrain.make_current", "posttrain.reject", "posttrain.report"]


@dataclass(frozen=True)
class Ending:
    """Ending of a run."""

    exit_code: int  # of run_pipeline
    success: bool  # of pipeline_result.json
    green: bool  # the runner's own word, the colour in the Kubeflow UI
    ran: list[str]  # steps in their order
    next_stage_ran: bool
    published: list[str]  # files below published/
    receipt: bool
    is_current: bool  # a version is
    is_published_before: bool  # by the graph: the gate comes behind publishing
    statuses: set[str]  # of the gate's checks, by the run record


def config_of(shape: str, root: Path) -> PipelineConfig:
    match = "exact" if shape == "pairs" else "none"
    validation = Validation(answer_match=match, custom_checks=["output_format_valid"], check_timeouts={"hangs": 1})
    export = Export(formats=["q8_0"]) if shape == "exported" else None
    return PipelineConfig(
        export=export, stages=SHAPES[shape], validation=validation, storage_root=str(root), allowed_storage_roots=["/"]
    )


def gates_of(shape: str) -> list[str]:
    """The gates of a shape; of the one with exported files that which no other has."""
    gates = [name for name in step_names(config_of(shape, Path("/"))) if name.startswith("check_")]
    return gates if shape != "exported" else ["check_export"]


ONE_AT_A_TIME = threading.Lock()
OWN = {"pairs": "check_pairs", "exported": "check_export"}  # the gate that a shape has beside those of the full one
GATES = [(shape, gate) for shape in SHAPES for gate in gates_of(shape) if gate == OWN.get(shape, gate)]


@functools.cache
def compiled(shape: str) -> str:
    """The graph as YAML; its storage root is a parameter of each run."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        compile_graph(config_of(shape, Path("/")), Path(folder) / "graph.yaml")
        return (Path(folder) / "graph.yaml").read_text()


@functools.cache
def parsed(text: str):
    from kfp import components

    return components.load_component_from_text(text)


def play(folder: Path, shape: str, gate: str, outcome: str, *, own_process: bool = False) -> Ending:
    """One run in an empty `folder`, from the start of `runner.here.run_here` to its exit code."""
    config, root = config_of(shape, folder / "store"), folder / "store"
    parameters = {
        "base_model": "base",
        "sft_dataset": "s",
        "preference_dataset": "p",
        "storage_root": str(root),
        "model_name": "m",
        "overrides": {},
    }
    code = write_stand_ins(folder / "code")
    plan = {steps.PLAN: json.dumps({"gate": gate, "outcome": outcome}), "PYTHONPATH": str(ROOT)}
    words = []

    def in_its_folder(*arguments, environment, **settings) -> local.GraphRun:
        return local.GraphRun(*arguments, working_directory=code, environment=environment | plan, **settings)

    with quick(shape, gate, own_process), contextlib.redirect_stdout(io.StringIO()):
        run_graph = lambda *arguments: words.append(local.run_graph(*arguments))  # noqa: E731
        with patch.object(here, "GraphRun", in_its_folder), patch.object(here, "run_graph", run_graph):
            exit_code = here.run_here(here.Run(RunRequest(config, parameters), RUN_ID, local.ProcessRunner()))
    return ending_of(root, shape, gate, exit_code, green=words == [True])


def ending_of(root: Path, shape: str, gate: str, exit_code: int, *, green: bool) -> Ending:
    names = step_names(config_of(shape, root))
    later = set(names[names.index(gate) + 1 :])
    records = read_records(str(root), RUN_ID)
    ran = [log.stem for log in (root / "runs" / RUN_ID / "logs").iterdir()]  # a step that was killed has no record
    verdicts = {one.step: one.verdict for one in records if one.verdict}
    return Ending(
        exit_code=exit_code,
        success=json.loads((root / "runs" / RUN_ID / report.RESULT).read_text())["success"],
        green=green,
        ran=sorted(ran),
        next_stage_ran=bool(later & set(ran)),
        published=[str(path) for path in (root / "published").rglob("*")],
        receipt=(root / "artifacts" / RUN_ID / "publish_model" / "receipt").exists(),
        is_current=any((root / "published").rglob("CURRENT")),
        is_published_before="publish_model" not in later,
        statuses={check["status"] for check in verdicts.get(gate, {}).get("checks", [])},
    )


def faults(ending: Ending, outcome: str) -> list[str]:
    """Where a run ended otherwise than its outcome demands."""
    wanted = OUTCOMES[outcome]
    found = {
        "exit code of run_pipeline": (ending.exit_code, wanted.exit_code),
        "success in pipeline_result.json": (ending.success, wanted.passes),
        "the runner's word": (ending.green, wanted.passes),
        "publish receipt": (ending.receipt, wanted.passes or ending.is_published_before),
        "published files": (bool(ending.published), wanted.passes or ending.is_published_before),
        "made current": (ending.is_current, wanted.passes),
        "next stage ran": (ending.next_stage_ran, wanted.passes or wanted.lies),
        "has the check": (wanted.status in ending.statuses or not wanted.status, True),
    }
    return [f"{what}: {is_}, not {should}" for what, (is_, should) in found.items() if is_ != should]


def write_stand_ins(code: Path) -> Path:
    """A folder in which `python -m` finds the stand-ins before the real modules, and the real ones beside them."""
    for package in sorted({module.rpartition(".")[0] for module in STAND_INS}):
        folder = package.replace(".", "/")
        (code / folder).mkdir(parents=True)
        real = ROOT / folder / "__init__.py"
        (code / folder / "__init__.py").write_text(f"__file__ = {str(real)!r}\n__path__.append({str(real.parent)!r})\n")
    for module in STAND_INS:
        file = (code / module.replace(".", "/")).with_suffix(".py")
        file.write_text("from tests.fail_closed.steps import main\n\nmain()\n")
    return code


@contextlib.contextmanager
def quick(shape: str, gate: str, own_process: bool) -> Iterator[None]:
    """The runner without what is the same in every run: compiling, parsing, starting Python, importing."""
    warm_up()
    theirs = local.Launcher._execute

    def execute(launcher, step: local.Step) -> tuple[int, str]:
        run = call if step.name != gate else theirs if own_process else fork
        return run(launcher, step)

    def compile_(config, path) -> None:
        Path(path).write_text(compiled(shape))

    def load(path):
        graph = parsed(Path(path).read_text())
        return types.SimpleNamespace(
            pipeline_spec=copy.deepcopy(graph.pipeline_spec), platform_spec=graph.platform_spec
        )

    with (
        patch.object(local.Launcher, "_execute", execute),
        patch.object(local.components, "load_component_from_file", load),
        patch.object(request, "compile_graph", compile_),
    ):
        yield


@functools.cache
def warm_up() -> None:
    """Does once what every step would do again: our digest, imports, the page's template."""
    code_of(steps.__name__, config={})
    for module in REAL:
        importlib.import_module(module)
        code_of(module, config={})
    page.html(Verdict(gate="check_none", subject={}, checks=[holds("warm", True)]))
    gc.freeze()  # the copies share memory


def fork(launcher, step: local.Step) -> tuple[int, str]:
    """Stands in for `Launcher._execute`; the process is a copy of this one."""
    child = os.fork()
    if child == 0:
        os._exit(call(launcher, step)[0])
    exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return exit_code, last_line(launcher.run.logs / f"{step.name}.log")


def call(launcher, step: local.Step) -> tuple[int, str]:
    """Runs a step inside this process, whose environment and streams are one step's at a time."""
    log = launcher.run.logs / f"{step.name}.log"
    with ONE_AT_A_TIME, patch.dict(os.environ, step.environment), words_in(log):
        exit_code = as_module(step)
    return exit_code, last_line(log)


def as_module(step: local.Step) -> int:
    """`python -m module ...` as a call of its `main`; gives the exit code that the interpreter would end with."""
    main = steps.main if step.module in STAND_INS else importlib.import_module(step.module).main
    try:
        main(step.flags)
    except SystemExit as left:
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001  as the interpreter does at the end of a process
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def words_in(log: Path) -> Iterator[None]:
    """Whatever is printed or logged inside goes to the step's log, as that of a process would."""
    handlers = logging.root.handlers[:]
    logging.root.handlers.clear()
    try:
        with (
            open(log, "a", encoding="utf-8") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            yield
    finally:
        logging.root.handlers[:] = handlers


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
