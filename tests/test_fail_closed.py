"""Whatever becomes of a gate: only a pass goes on, and nothing else ends green, exits 0 or publishes.

The compiled graph of every shape under the local runner, with every gate and every outcome of tests/fail_closed.
"""

import subprocess
import sys

import pytest

from tests.fail_closed import __main__ as whole
from tests.fail_closed import runs
from tests.fail_closed.outcomes import HOSTILE, OUTCOMES

pytestmark = pytest.mark.long


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize(("shape", "gate"), runs.GATES)
def test_only_a_pass_goes_on(tmp_path, shape, gate, outcome):
    assert runs.faults(runs.play(tmp_path, shape, gate, outcome), outcome) == []


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_so_it_is_with_a_gate_that_is_started_as_the_runner_starts_it(tmp_path, outcome):
    ending = runs.play(tmp_path, "SFT only", "check_sft_data", outcome, own_process=True)
    assert runs.faults(ending, outcome) == []


def test_the_shapes_have_every_gate():
    assert {gate for _, gate in runs.GATES} == {
        "check_data", "check_sft_data", "check_preference_data", "check_sft", "check_sft_merge", "check_dpo_merge",
        "check_pairs", "check_alignment", "check_safety", "check_export", "check_champion",
    }  # fmt: skip


def test_hostile_text_reaches_the_person_as_text(tmp_path):
    runs.play(tmp_path, "SFT only", "check_sft_data", "quotes, newlines, braces")
    folder = tmp_path / "store" / "runs" / runs.RUN_ID
    page = (folder / "check_sft_data" / "verdict.html").read_text()
    assert "it&#39;s" in page
    assert HOSTILE not in page
    assert "</script><b>" not in page


def test_faults_are_seen(tmp_path):
    """A run that passed, taken for each other outcome: the comparison that all the tests above rest on can fail."""
    ending = runs.play(tmp_path, "DPO only", "check_alignment", "pass")
    assert runs.faults(ending, "pass") == []
    for outcome in OUTCOMES.keys() - {"pass"}:
        assert len(runs.faults(ending, outcome)) >= 4, outcome


def test_the_table_shows_gates_and_outcomes(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(whole, "GATES", [("SFT only", "check_sft_data")])
    monkeypatch.setattr(whole, "OUTCOMES", {name: OUTCOMES[name] for name in ("pass", "NaN")})
    assert whole.main(["--output", str(tmp_path / "table.md")]) == 0
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "| pass | went on, green (0) |" in table
    assert "| NaN | stopped, red (2) |" in table
    assert "2 runs" in table


def test_nothing_of_a_hanging_check_is_left(tmp_path):
    runs.play(tmp_path, "SFT only", "check_sft_data", "a check hangs", own_process=True)
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert f"{sys.executable} -m validators.data --step check_sft_data --storage-root {tmp_path}" not in left
