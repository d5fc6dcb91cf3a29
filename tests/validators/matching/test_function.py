"""The user's own matcher: what scores, and all the ways in which none does."""

import time
from pathlib import Path

import pytest

from validators.inference import Answer
from validators.matching import function
from validators.measuring import Timeouts

# A module of the user's, with matchers that are right and many that are not.
MINE = """
import os, sys, time
from decimal import Decimal

def same(prompt, answer, reference):
    return answer == reference

def part(prompt, answer, reference):
    return len(set(answer) & set(reference)) / len(set(reference))

def asked(prompt, answer, reference):
    return float(prompt[-1]["content"] == reference["of"])

def raises(prompt, answer, reference):
    raise RuntimeError("out of luck\\nin line two")

def raises_late(prompt, answer, reference):
    return {"yes": 1.0}[answer]

def exits(prompt, answer, reference):
    sys.exit(0)

def dies(prompt, answer, reference):
    os.kill(os.getpid(), 9)

def hangs(prompt, answer, reference):
    time.sleep(60)

def nothing(prompt, answer, reference):
    pass

def text(prompt, answer, reference):
    return "1"

def not_a_number(prompt, answer, reference):
    return float("nan")

def infinite(prompt, answer, reference):
    return float("inf")

def above(prompt, answer, reference):
    return 1.01

def below(prompt, answer, reference):
    return -0.01

def too_few(prompt):
    return 1.0

constant = 1.0
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_matchers.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))


def run(name: str, texts: list[str], references: list[list], *, stopped: bool = True, seconds: float = 30):
    name = name if ":" in name else f"acme_matchers:{name}"
    prompts = [[{"role": "user", "content": "What?"}]] * len(texts)
    answers = [Answer(text, stopped, len(text)) for text in texts]
    return function.scores(name, prompts, answers, references, Timeouts(seconds))


def test_the_best_reference_counts():
    measured = run("same", ["yes", "no", "no"], [["yes"], ["yes"], ["yes", "no"]])
    assert (measured.numbers, measured.failures) == ({"answer_scores": [1.0, 0.0, 1.0]}, [])
    assert run("part", ["ab", "x"], [["abcd"], ["a", "x"]]).numbers["answer_scores"] == [0.5, 1.0]


def test_it_sees_the_prompt_and_references_of_any_kind():
    assert run("asked", ["yes"], [[{"of": "When?"}, {"of": "What?"}]]).numbers["answer_scores"] == [1.0]


def test_an_answer_that_did_not_end_by_itself_is_not_even_shown():
    assert run("raises", ["yes"], [["yes"]], stopped=False).numbers["answer_scores"] == [0.0]


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("raises", "RuntimeError: out of luck in line two"),
        ("raises_late", "KeyError: 'no'"),
        ("exits", "its process ended without a result, exit code 0"),
        ("dies", "killed by SIGKILL"),
        ("nothing", "gave NoneType, not a number from 0 to 1"),
        ("text", "gave str, not a number"),
        ("not_a_number", "gave nan: a score must lie between 0 and 1"),
        ("infinite", "gave inf"),
        ("above", "gave 1.01"),
        ("below", "gave -0.01"),
        ("too_few", "TypeError"),
        ("constant", "has no function constant"),
        ("absent", "has no function absent"),
        ("acme_gone:any", "No module named 'acme_gone'"),
    ],
)
def test_whatever_goes_wrong_is_a_failed_check_of_its_name_and_no_score(name, detail):
    measured = run(name, ["yes", "no"], [["yes"], ["no"]])
    [check] = measured.failures
    assert measured.numbers == {}
    assert (check.name, check.status) == (name if ":" in name else f"acme_matchers:{name}", "failed")
    assert detail in check.detail


def test_one_that_hangs_is_ended_at_its_time():
    started = time.monotonic()
    measured = run("hangs", ["yes"], [["yes"]], seconds=1)
    assert [check.status for check in measured.failures] == ["timed out"] and measured.numbers == {}
    assert time.monotonic() - started < 5
