"""The user's own checks: what passes, and all the ways in which one does not."""

import re
import sys
import time
from pathlib import Path

import pytest

from posttrain.config import AnswerLimits
from validators import custom
from validators.answers import JudgedAnswer
from validators.inference import Answer

# A module of the user's, with one check that is right and many that are not.
MINE = """
import math, os, sys, time
from posttrain.verdict import Check, at_most, holds

def stopped(prompts, answers, context):
    texts = [message["content"] for prompt in prompts for message in prompt]
    return holds("stopped", all(context.stopped), detail=f"{context.gate}: {texts} {answers} {context.confidence}")

def long(prompts, answers, context):
    return at_most("long", max(map(len, answers)), 3)

def raises(prompts, answers, context):
    raise RuntimeError("out of luck\\nin line two")

def exits(prompts, answers, context):
    sys.exit(0)

def dies(prompts, answers, context):
    os.kill(os.getpid(), 9)

def hangs(prompts, answers, context):
    time.sleep(60)

def truth(prompts, answers, context):
    return True

def nothing(prompts, answers, context):
    pass

def listed(prompts, answers, context):
    return [holds("listed", True)]

def another(prompts, answers, context):
    return holds("stopped", True)

def not_a_number(prompts, answers, context):
    return at_most("not_a_number", math.nan, 3)

def smuggled(prompts, answers, context):
    return Check.model_construct(name="smuggled", status="passed", value=math.nan)

def unknown_status(prompts, answers, context):
    return Check.model_construct(name="unknown_status", status="PASS")

def too_few(prompts):
    return holds("too_few", True)

constant = 3
"""
BROKEN = "import no_such_library"


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "acme_checks").mkdir()
    (tmp_path / "acme_checks" / "mine.py").write_text(MINE)
    (tmp_path / "acme_checks" / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def answered(*texts: str, stopped: bool = True) -> list[JudgedAnswer]:
    prompt = [{"role": "user", "content": "What?"}]
    return [JudgedAnswer(prompt, Answer(text, stopped, len(text)), None) for text in texts]


def run(*functions: str, judged: list[JudgedAnswer] | None = None, seconds: int = 30):
    names = [name if ":" in name else f"acme_checks.mine:{name}" for name in functions]
    timeouts = {"acme_checks.mine:hangs": 1}
    limits = AnswerLimits(custom_checks=names, check_timeout_seconds=seconds, check_timeouts=timeouts, confidence=0.9)
    judged = answered("yes", "no") if judged is None else judged
    return custom.run(limits, judged, context_of(judged, limits))


def context_of(judged: list[JudgedAnswer] | None, limits: AnswerLimits) -> custom.Context:
    return custom.Context("check_sft", [one.answer.stopped for one in judged or []], limits.confidence)


def test_a_check_sees_prompts_answers_and_its_gate():
    [check], seconds = run("stopped")
    assert (check.name, check.status) == ("acme_checks.mine:stopped", "passed")
    assert check.detail == "check_sft: ['What?', 'What?'] ['yes', 'no'] 0.9"
    assert seconds.keys() == {"acme_checks.mine:stopped"}


def test_a_check_that_finds_something_fails():
    answers = answered("yes", "perhaps", stopped=False)
    result, _ = run("stopped", "long", judged=answers)
    assert [check.status for check in result] == ["failed", "failed"]
    assert (result[1].value, result[1].limit) == (7, 3)


@pytest.mark.parametrize(
    ("function", "detail"),
    [
        ("raises", "RuntimeError: out of luck in line two"),
        ("exits", "its process ended without a result, exit code 0"),
        ("dies", "its process ended without a result, killed by SIGKILL"),
        ("truth", "returned bool, not a posttrain.verdict.Check"),
        ("nothing", "returned NoneType"),
        ("listed", "returned list"),
        ("another", "returned a check named 'stopped': name it 'another', like the function"),
        ("not_a_number", "measured nan"),
        ("smuggled", "ValidationError"),
        ("unknown_status", "ValidationError"),
        ("too_few", "TypeError"),
        ("absent", "module acme_checks.mine has no function absent"),
        ("constant", "module acme_checks.mine has no function constant"),
        ("acme_checks.broken:any", "No module named 'no_such_library'"),
        ("acme_checks.gone:any", "No module named 'acme_checks.gone'"),
    ],
)
def test_whatever_goes_wrong_is_a_failed_check_of_its_name(function, detail):
    [check], _ = run(function)
    assert check.name == (function if ":" in function else f"acme_checks.mine:{function}")
    assert check.status == "failed"
    assert detail in check.detail


def test_one_that_hangs_is_ended_at_its_time_and_hides_no_other():
    started = time.monotonic()
    result, seconds = run("hangs", "stopped")
    assert [check.status for check in result] == ["timed out", "passed"]
    assert 1 <= seconds["acme_checks.mine:hangs"] < 3
    assert time.monotonic() - started < 5


def test_the_order_is_that_of_the_configuration_and_built_in_names_are_the_gate_s():
    names = ["acme_checks.mine:long", "output_format_valid", "acme_checks.mine:raises", "acme_checks.mine:stopped"]
    limits = AnswerLimits(custom_checks=names)
    result, _ = custom.run(limits, answered("yes"), context_of(answered("yes"), limits))
    assert [check.name for check in result] == custom.own(names) == [names[0], *names[2:]]


@pytest.mark.parametrize("judged", [None, []])
def test_without_answers_nothing_is_judged_and_nothing_passes(judged):
    limits = AnswerLimits(custom_checks=["output_format_valid", "acme_checks.mine:stopped"])
    [check], seconds = custom.run(limits, judged, context_of(judged, limits))
    assert (check.name, check.status, seconds) == ("acme_checks.mine:stopped", "not run", {})


def test_the_gate_s_own_process_imports_nothing_of_the_user_s():
    run("stopped")
    custom.check_importable(["acme_checks.mine:stopped"])
    assert not [name for name in sys.modules if name.startswith("acme_checks")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("acme_checks.gone:any", "No module named 'acme_checks.gone'"),
        ("acme_checks.broken:any", "No module named 'no_such_library'"),
        ("acme_checks.mine:absent", "has no function absent"),
    ],
)
def test_a_check_that_cannot_be_imported_is_refused_before_the_run(name, words):
    with pytest.raises(ValueError, match=f"{re.escape(repr(name))}: .*{words}.*PYTHONPATH"):
        custom.check_importable(["output_format_valid", "acme_checks.mine:stopped", name])


def test_importable_checks_are_not_refused():
    custom.check_importable(["output_format_valid", "no_harmful_content", "acme_checks.mine:stopped"])


def test_the_documented_example_runs(modules):
    section = Path("docs/gates.md").read_text(encoding="utf-8").partition("## Your own check")[2].partition("\n## ")[0]
    [code] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    [name] = re.findall(r'"(\w[\w.]*:\w+)"', section)
    package, module = name.partition(":")[0].split(".")
    (modules / package).mkdir()
    (modules / package / f"{module}.py").write_text(code)
    limits = AnswerLimits(custom_checks=[name])
    for text, status in (("short", "passed"), ("long " * 200, "failed")):
        judged = answered(*[text] * 64)
        [check], _ = custom.run(limits, judged, context_of(judged, limits))
        assert (check.name, check.status, check.limit) == (name, status, 0.9), check.sentence
