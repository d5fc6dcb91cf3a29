"""The frame of the benchmarks: turns, figures of a process, limits of time."""

import argparse
import json
import sys

import pytest

from benchmarks import measuring
from benchmarks.measuring import Side, Table, build_parser, in_turn, report, run


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def rounds(number: int, minutes: float = 1.0) -> argparse.Namespace:
    return argparse.Namespace(rounds=number, minutes=minutes)


def test_a_process_is_measured_with_what_it_starts():
    held = bytearray(b"x" * 200_000_000)  # by the parent: not the child's
    work = "import time; held = b'x' * 100_000_000; end = time.process_time() + 0.2\nwhile time.process_time() < end: 1"
    result = run(Side(["sh", "-c", '"$@"; true', "sh", *python(work)]))
    assert 0.2 <= result["cpu_seconds"] <= result["seconds"] + 0.1
    assert 100 < result["peak_mb"] < len(held) / 1e6


def test_what_a_side_tells_on_its_last_line_counts():
    result = run(Side(python('print("log"); print({"loss": 1, "seconds": 2}.__repr__().replace(chr(39), chr(34)))')))
    assert result["loss"] == 1 and result["seconds"] == 2 and result["peak_mb"] > 1


def test_a_side_that_fails_ends_the_benchmark_with_its_words():
    with pytest.raises(RuntimeError, match="exited 3: no such model"):
        run(Side(python('import sys; print("no such model", file=sys.stderr); sys.exit(3)')))


def test_sides_take_turns_and_a_warm_up_does_not_count(tmp_path):
    order = []
    sides = {
        name: Side(["true"], before=lambda name=name: order.append(name), after=lambda: order.append("checked"))
        for name in "ab"
    }
    runs = in_turn(sides, rounds(2), warm_up=True)
    assert order == ["a", "checked", "b", "checked"] * 3
    assert [len(found) for found in runs.values()] == [2, 2]


@pytest.mark.parametrize(("minutes", "num_rounds"), [(0, 1), (3.5, 3), (60, 9)])
def test_no_round_begins_that_would_end_after_the_time(minutes, num_rounds, monkeypatch):
    clock = [0.0]

    def a_minute(_) -> dict[str, float]:
        clock[0] += 60
        return {"seconds": 60.0}

    monkeypatch.setattr(measuring.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(measuring, "run", a_minute)
    assert len(in_turn({"slow": Side(["slow"])}, rounds(9, minutes))["slow"]) == num_rounds


def test_the_file_holds_every_run(tmp_path, capsys):
    args = build_parser("Merge: ours.\n\nmore", name="merge", rounds=1, minutes=1).parse_args(
        [f"--output={tmp_path / 'new' / 'merge.json'}"]
    )
    report(args, note="Random weights.", tables=[Table("1.5B", "ours", {"ours": [{"seconds": 1.0}]})])
    content = json.loads(args.output.read_text())
    assert content["title"] == "Merge: ours" and content["settings"] == {"rounds": 1, "minutes": 1}
    assert content["tables"][0]["runs"] == {"ours": [{"seconds": 1.0}]}
    assert "cores" in content["machine"] and "## Merge: ours\n\nRandom weights." in capsys.readouterr().out
