import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest

from posttrain import storage
from posttrain.storage import layout
from runner import claim
from runner.claim import claimed
from runner.parameters import new_run_id

TAKEN = r"--run-id 'r1' was taken in .* by process \d+ on \S+; choose another id: .*free after 600 s\.\)"


def test_of_runs_on_several_machines_that_choose_one_id_at_once_one_wins(root: str):
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:

        def take(_) -> str:
            try:
                stack.enter_context(claimed(root, "r1"))
            except ValueError as error:
                return str(error)
            return "won"

        first, *others = sorted(pool.map(take, range(4)), reverse=True)
        assert first == "won"
        assert all(re.fullmatch(TAKEN, error) for error in others)
        with claimed(root, "r2"):
            pass


def test_an_id_whose_run_was_killed_before_its_first_record_is_free_after_the_lease(root: str):
    first = claim.take(root, "r1")
    replace(first, written_at=first.written_at - claim.LEASE_SECONDS + 60).write()
    assert new_run_id(root, "r1") == "r1"
    with pytest.raises(ValueError, match=TAKEN), claimed(root, "r1"):
        pytest.fail("it ran")
    replace(first, written_at=first.written_at - claim.LEASE_SECONDS - 60).write()
    with claimed(root, "r1") as second:
        second.renew()
        with pytest.raises(ValueError, match="another run took this --run-id over"):
            first.renew()
        with pytest.raises(ValueError, match=TAKEN), claimed(root, "r1"):
            pytest.fail("it ran")


def test_an_id_whose_run_ended_before_its_first_record_is_free_at_once(root: str):
    for _ in range(2):
        with pytest.raises(OSError, match="no disk"), claimed(root, "r1"):
            raise OSError("no disk")


def test_an_id_whose_run_has_a_record_stays_taken(root: str):
    with claimed(root, "r1"):
        storage.write_bytes(layout.runs(root, "r1", "preflight.1.json"), b"{}")
    with pytest.raises(ValueError, match=TAKEN), claimed(root, "r1"):
        pytest.fail("it ran")
    with pytest.raises(ValueError, match="has a record"):
        new_run_id(root, "r1")


def test_what_a_killed_run_left_on_this_machine_is_no_record(tmp_path):
    for name in ("graph.yaml", "logs/preflight.log", "RUNNING", ".RUNNING.0123"):
        storage.write_bytes(layout.runs(tmp_path, "r1", name), b"")
    assert new_run_id(str(tmp_path), "r1") == "r1"
    storage.write_bytes(layout.runs(tmp_path, "r1", "pipeline_result.json"), b"{}")
    with pytest.raises(ValueError, match="has a record"):
        new_run_id(str(tmp_path), "r1")


def test_a_damaged_claim_is_over(tmp_path):
    storage.write_bytes(layout.runs(tmp_path, "r1", "claims/run.1.json"), b"")
    with claimed(str(tmp_path), "r1") as second:
        assert second.number == 2


def test_a_run_that_gives_a_sign_of_life_at_the_last_moment_keeps_its_id(tmp_path, monkeypatch):
    first = claim.take(str(tmp_path), "r1")
    replace(first, written_at=0).write()
    write = claim.Claim.write

    def meanwhile(second: claim.Claim, **how) -> None:
        write(first)
        write(second, **how)

    monkeypatch.setattr(claim.Claim, "write", meanwhile)
    with pytest.raises(ValueError, match="was taken"):
        claim.take(str(tmp_path), "r1")
