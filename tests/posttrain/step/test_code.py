"""Code in a fingerprint: a finished step stays finished unless something changed that it can run."""

import importlib
import shutil
from pathlib import Path

import pytest

from posttrain.step import code, imports

STEPS = [
    *(f"posttrain.{name}" for name in ("preflight", "model", "data", "sft", "dpo", "merge", "publish", "reject")),
    *("posttrain.report", "posttrain.sweep.trial", "posttrain.sweep.compare", "posttrain.sweep.hold_out"),
    *(f"validators.{name}" for name in ("data", "sft", "merge", "alignment", "champion")),
]


@pytest.fixture
def root(tmp_path) -> Path:
    """A copy of our packages."""
    for package in imports.PACKAGES:
        shutil.copytree(package, tmp_path / package)
    return tmp_path


def changed_by(root: Path, file: str, *, added: str = "\nCHANGED = 1\n") -> set[str]:
    """The steps whose code is another one after this was added to a file."""
    before = {step: code.source_digest(step, root=root) for step in STEPS}
    path = root / file
    text = path.read_text()
    path.write_text(text + added)
    after = {step: code.source_digest(step, root=root) for step in STEPS}
    path.write_text(text)
    return {step for step in STEPS if before[step] != after[step]}


TRAININGS = {"posttrain.sft", "posttrain.dpo"}
CHAMPION = "validators.champion"  # reads what is published, and is never reused
GATES = {step for step in STEPS if step.startswith("validators.")} - {CHAMPION}


@pytest.mark.parametrize("template", ["report.html", "style.css", "model_card.md"])
def test_the_look_of_a_report_makes_nothing_anew(root, template):
    assert not changed_by(root, f"posttrain/pages/templates/{template}")
    assert not changed_by(root, "posttrain/pages/curve.py")


def test_a_change_of_the_training_trains_again_and_leaves_the_rest(root):
    changed = changed_by(root, "posttrain/train/stage.py")
    assert changed & (TRAININGS | GATES | {"posttrain.merge", "posttrain.model", "posttrain.data"}) == TRAININGS


def test_a_change_of_one_stage_is_not_one_of_the_other(root):
    assert "posttrain.dpo" not in changed_by(root, "posttrain/sft.py")
    assert "posttrain.sft" not in changed_by(root, "posttrain/dpo.py")


def test_a_change_of_a_gate_judges_again_and_trains_nothing(root):
    assert changed_by(root, "validators/sft.py") == {"validators.sft"}
    assert changed_by(root, "validators/champion.py") == {CHAMPION}
    assert changed_by(root, "validators/intervals.py") <= GATES | {CHAMPION}


def test_a_change_of_what_a_gate_asks_judges_again(root):
    """A verdict on other questions is not one on these."""
    assert changed_by(root, "validators/skills/rows/memory.jsonl", added='{"id": "new"}\n') == {"validators.alignment"}


def test_another_engine_judges_exported_files_again(monkeypatch):
    before = code.code_of("validators.export", config={})
    monkeypatch.setattr(
        code, "_release", lambda name: "2.0" if name == "xllamacpp" else before.libraries.get(name, "1")
    )
    code._code.cache_clear()
    after = code.code_of("validators.export", config={})
    code._code.cache_clear()
    assert after.libraries == before.libraries | {"xllamacpp": "2.0"} and after.sha256 != before.sha256
    assert not code.ENGINES & code.code_of("posttrain.sft", config={}).libraries.keys()


def test_a_change_of_the_report_or_of_sweeps_trains_nothing(root):
    for file in ("posttrain/report.py", "posttrain/sweep/table.py", "posttrain/verify.py", "posttrain/compare.py"):
        assert not changed_by(root, file) & (TRAININGS | GATES | {"posttrain.merge"})


def test_a_change_of_what_all_share_makes_all_anew(root):
    assert changed_by(root, "posttrain/step/frame.py") == set(STEPS)


def test_a_comment_changes_nothing(root):
    assert not changed_by(root, "posttrain/step/frame.py", added="\n# Nothing new.\n")


def test_a_trial_covers_the_steps_that_it_starts(root):
    started = frozenset({"posttrain.sft", "validators.sft"})
    alone, trial = (code.source_digest("posttrain.sweep.trial", names, root) for names in (frozenset(), started))
    (root / "validators" / "sft.py").write_text("")
    assert code.source_digest("posttrain.sweep.trial", root=root) == alone
    assert code.source_digest("posttrain.sweep.trial", started, root) != trial


def test_modules_that_a_configuration_names_are_found_in_it():
    commands = [{"step": "check_sft", "module": "validators.sft", "outputs": ["passed"]}]
    plain, trial = (code.code_of("posttrain.sweep.trial", config={"commands": found}) for found in ([], commands))
    assert plain.source != trial.source
    assert trial.source == code.source_digest("posttrain.sweep.trial", frozenset({"validators.sft"}))


def test_a_module_from_elsewhere_may_use_any_of_ours(root):
    before = code.source_digest("acme.sft", root=root)
    (root / "validators" / "safety.py").write_text("")
    assert code.source_digest("acme.sft", root=root) != before


@pytest.mark.parametrize("module", STEPS)
def test_every_step_is_given_its_own_module(module):
    assert importlib.import_module(module).build_parser().get_default("module") == module


def test_the_closure_of_a_training_is_small():
    """Nothing of gates, sweeps, publishing and reports; of the pages only its own curve, and how a duration reads."""
    reached = set(imports.closure(["posttrain.sft"]))
    assert not [name for name in reached if name.startswith(("validators", "posttrain.sweep"))]
    assert not reached & {f"posttrain.{name}" for name in ("report", "publish", "preflight", "verify", "data", "merge")}
    assert {name for name in reached if code.is_page(name)} == {
        "posttrain.pages",
        "posttrain.pages.curve",
        "posttrain.pages.drawing",
        "posttrain.pages.wording",
    }


def test_a_record_from_before_a_step_had_code_of_its_own_keeps_its_fingerprint():
    """Published models of then are still verified."""
    old = {"posttrain": "0.1.0", "source": "s", "libraries": {"torch": "2"}}
    assert code.Code(**old).sha256 == "f8dce3dba4f86c8e76d31db7ba2178670ea827b695c39cfab8247c35238ba6eb"
