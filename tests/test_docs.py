"""The documentation: its commands run as they stand there, its links lead somewhere, its examples are valid.

Every command in a bash block is run here or by CI (.ci/run), or is in RUN_ELSEWHERE with the reason why it is not.
"""

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.task_api.generate import generate, write
from pipelines.compiler import check_gates_can_judge
from posttrain.config import load_config
from posttrain.config.mixture import parts_of

ROOT = Path(__file__).parents[1]
GLOBS = ("*.md", "docs/*.md", "examples/*/README.md", "images/README.md", "benchmarks/README.md")
DOCUMENTS = [path.relative_to(ROOT) for pattern in GLOBS for path in sorted(ROOT.glob(pattern))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
INLINE = re.compile(r"`([^`\n]+)`")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)(?:\[([^\]`]+)\])?`")
LANGUAGES = {"bash", "text", "yaml", "python"}
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv*", "build", "runs", "*.egg-info", "__pycache__", ".pytest_cache", ".ruff_cache"
)

INSTALLS = "CI starts without .venv, and `make lint` makes it"
NETWORK = "needs the network"
MINUTES = "takes minutes"
PART = "a part of `make run`"
GPU = "needs a GPU"
DOCKER = "needs a Docker engine: `make test-docker` builds both images, and runs the graph and single steps in them"
CLUSTER = "needs a Kubeflow: tests/test_run_on_cluster.py runs it against a server that stands in for one"
RUN_ELSEWHERE = {  # command, or its beginning and ..., which stands for one command only -> where it runs, or why not
    "git clone <this repository> && cd posttrain": "the reader's own address",
    "python3 -m venv .venv": INSTALLS,
    ".venv/bin/pip install torch==2.13.0 ...": NETWORK,
    "make install": INSTALLS,
    "make run": f"{MINUTES}; tests/examples/test_function_calling.py runs its parts",
    "python -m examples.function_calling.prepare": PART,
    "python run_pipeline.py --config examples/function_calling/pipeline_config.yaml": PART,
    "python -m examples.function_calling.evaluate ...": PART,
    "make bench": MINUTES,
    "make test-gpu": GPU,
    "make bench-gpu": GPU,
    "make rehearse-gpu": f"{MINUTES}, in the environment of `make test-unsloth`",
    "make chaos-nodes KILLS=20": f"{MINUTES}; tests/posttrain/nodes/test_launch.py kills each part once",
    "python -m images.wheels ...": f"{NETWORK}; tests/images/test_wheels.py runs it on an index of its own",
    "make golden": "the tests of each file that it writes compare it with what it would write",
    "make lock": f"{MINUTES}, and {NETWORK}",
    "python -m docs.screenshot ...": "needs Chromium",
    'make image BASE_IMAGE="$CUDA_BASE" ...': DOCKER,
    'make image BASE_IMAGE="$BASE"': DOCKER,
    "make push ...": DOCKER,
    "tar -C wheels -c . | docker import ...": DOCKER,
    "python run_pipeline.py --runner docker ...": DOCKER,
    "docker run ...": DOCKER,
    "python run_pipeline.py --endpoint ...": CLUSTER,
    "kfp ...": CLUSTER,
    "kubectl apply -n kubeflow -f configs/kubernetes/trainer.yaml": CLUSTER,
    "make test-cluster ENDPOINT=https://kubeflow.example.org/pipeline ...": "needs a Kubeflow of the reader's",
    "python -m pytest -k poisoned": f"{MINUTES}; `make test` runs them",
    "python run_pipeline.py --config my_pipeline.yaml --sweep ...": f"{MINUTES}: 12 trials",
}
# The tiny model reads the documented limits of a product, and a gate says no.
EXIT_CODES = {"python run_pipeline.py --config my_pipeline.yaml": 2}


def blocks(document: Path, language: str) -> list[str]:
    """The code blocks of a document in this language."""
    return [code for name, code in BLOCK.findall((ROOT / document).read_text(encoding="utf-8")) if name == language]


def commands(document: Path) -> list[str]:
    """The commands in a document's bash blocks: one a line, continued lines as one, without comments."""
    code = "".join(blocks(document, "bash")).replace("\\\n", " ")
    lines = (re.sub(r"(^|\s+)#.*", "", line) for line in code.splitlines())
    return [" ".join(line.split()) for line in lines if line.strip()]


def runs_elsewhere(command: str) -> list[str]:
    """The entries of RUN_ELSEWHERE that stand for a command, and CI's own line."""
    ci = set((ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()) & {command}
    return [key for key in RUN_ELSEWHERE if stands_for(key, command)] + list(ci)


def stands_for(key: str, command: str) -> bool:
    return command.startswith(key.removesuffix("...")) if key.endswith(" ...") else command == key


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, tiny_model) -> Path:
    """A copy of the repository, and beside its files a model and data as a user would have them."""
    copy = tmp_path_factory.mktemp("docs") / "posttrain"
    shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
    shutil.copytree(tiny_model, copy / "my-model")
    shutil.copy(ROOT / "examples" / "task_api" / "schema.json", copy)
    write(generate(num_sft=480, num_preferences=200, seed=0), copy)  # enough held out for the default limits
    (copy / ".venv").symlink_to(sys.prefix)
    return copy


@pytest.fixture(scope="module")
def run(checkout) -> Callable[[str], None]:
    """Runs a command in the copy; one that several pages have runs once."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    @functools.cache
    def once(command: str) -> None:
        done = subprocess.run(["bash", "-euc", command], cwd=checkout, env=env, capture_output=True, text=True)
        assert done.returncode == EXIT_CODES.get(command, 0), f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"

    return once


@pytest.mark.long
@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_command_runs_as_it_stands_there(checkout, run, document):
    for code in blocks(document, "yaml"):
        if name := re.match(r"# (\w+\.yaml)\n", code):
            (checkout / name[1]).write_text(code, encoding="utf-8")
    for command in commands(document):
        if not runs_elsewhere(command):
            run(command)


def test_the_table_says_one_thing_about_each_command_and_nothing_of_others():
    everything = {command for document in DOCUMENTS for command in commands(document)}
    assert [command for command in everything if len(runs_elsewhere(command)) > 1] == []
    for key in RUN_ELSEWHERE:
        assert len([command for command in everything if stands_for(key, command)]) == 1, key


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_link_leads_somewhere(document):
    text = BLOCK.sub("", (ROOT / document).read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        if path.startswith("https://"):
            continue
        target = (ROOT / document.parent / path).resolve() if path else ROOT / document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(document: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", document.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_block_names_its_language(document):
    """In a block without one a command would be overlooked."""
    assert {name for name, _ in BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))} <= LANGUAGES


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_modules_and_targets_that_are_mentioned_exist(document):
    targets = set(re.findall(r"^([a-z][\w-]*)(?=[ :])", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    targets |= {f"bench-{path.stem}" for path in (ROOT / "benchmarks").glob("*.py")} | {"bench-<name>", "image-cpu"}
    for code in INLINE.findall((ROOT / document).read_text(encoding="utf-8")):
        if module := re.match(r"python -m ([\w.]+)", code):
            path = ROOT / module[1].replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").is_file() or module[1] == "pytest", code
        if target := re.match(r"make ([\w<>-]+)", code):
            assert target[1] in targets, code


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_tests_that_are_mentioned_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for file, name, case in TEST.findall(text):
        path = ROOT / file
        code = path.read_text(encoding="utf-8") if path.is_file() else ""
        assert f"def {name}(" in code and (not case or f'"{case}"' in code), f"{file}::{name}[{case}]"


def test_each_row_of_the_tables_of_recovery_names_the_tests_that_show_it():
    text = (ROOT / "docs" / "recovery.md").read_text(encoding="utf-8").partition("## What happens when")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    places: list[int] = []
    for row in rows:
        if row[0].startswith("event"):
            places = [at for at, name in enumerate(row) if name == "shown by"]
            assert places
        else:
            assert all(TEST.search(row[at]) for at in places), row[0]
    assert len(rows) > 15


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_configurations_are_accepted(tmp_path, document):
    (tmp_path / "schema.json").write_text("{}")
    for code in blocks(document, "yaml"):
        (tmp_path / "config.yaml").write_text(code, encoding="utf-8")
        check_gates_can_judge(load_config(tmp_path / "config.yaml"))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_version_of_torch_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pin,) = [one for one in project["optional-dependencies"]["train"] if one.startswith("torch==")]
    for document in DOCUMENTS:
        assert set(re.findall(r"torch==[\w.]+", (ROOT / document).read_text(encoding="utf-8"))) <= {pin}, document


def test_kfps_own_command_gives_the_list_of_data_sets_as_text():
    from kfp.cli.utils.parsing import parse_parameter_value

    (line,) = re.findall(
        r"^sft_dataset='\".*$", (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    [argument] = shlex.split(line)
    value = parse_parameter_value(argument.partition("=")[2])
    assert [part.weight for part in parts_of(value)] == [1, 2.5]
