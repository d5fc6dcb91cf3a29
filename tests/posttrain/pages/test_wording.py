import pytest

from posttrain.pages import wording
from posttrain.verdict import Check, Verdict, at_least, at_most, holds

GOOD, NOT_RUN = holds("a", True), holds("b", None)
BAD = at_most("loss", 2.5, 2.0, interval=(2.4, 2.6))
UNSURE = at_least("format", 0.92, 0.9, interval=(0.85, 0.95), more_rows=41)
NEVER = at_least("stops", 0.9, 0.9, interval=(0.85, 0.95))


def verdict(*checks: Check) -> Verdict:
    return Verdict(gate="check_sft", subject={}, checks=checks)


@pytest.mark.parametrize(
    ("checks", "headline", "conclusion"),
    [
        ([GOOD], "Passed", "The one check passed."),
        ([GOOD, GOOD], "Passed", "All 2 checks passed."),
        (
            [GOOD, NOT_RUN, BAD],
            "Stopped by loss and 1 more",
            "2 of 3 checks did not pass: 1 failed, 1 not run. The run stops at this gate.",
        ),
        (
            [GOOD, UNSURE],
            "Undecided: about 41 more rows would decide",
            "Nothing failed, but there are too few rows to decide 1 of 2 checks. The run stops at this gate.",
        ),
    ],
)
def test_an_outcome_in_words(checks, headline, conclusion):
    assert wording.headline(verdict(*checks)) == headline
    assert wording.conclusion(verdict(*checks)) == conclusion


@pytest.mark.parametrize("name", ["skill_arithmetic", "skills_informative"])
@pytest.mark.parametrize("gate", ["check_alignment", "check_safety"])
def test_the_last_gate_says_that_nobody_judged_general_skills(gate, name):
    last = verdict(GOOD).model_copy(update={"gate": gate})
    assert wording.headline(last) == "Passed; nobody judged whether general skills were lost"
    assert wording.headline(last.model_copy(update={"checks": (GOOD, holds(name, True))})) == "Passed"
    unsaid = last.model_copy(update={"answer_match": "none"})
    assert wording.headline(unsaid).startswith("Passed; nobody judged the content of the answers; nobody judged ")


def test_rows_that_would_decide_are_those_of_the_check_that_needs_most():
    more = UNSURE.model_copy(update={"more_rows": 1200})
    assert wording.rows_that_would_decide(verdict(more, UNSURE)) == "about 1,200 more rows would decide"
    one = UNSURE.model_copy(update={"more_rows": 1})
    assert wording.rows_that_would_decide(verdict(one)) == "about 1 more row would decide"
    assert wording.rows_that_would_decide(verdict(UNSURE, NEVER)) == "more rows alone would not decide"


def test_numbers_of_a_check():
    assert [words(BAD) for words in (wording.measured, wording.limit, wording.interval)] == [
        "2.5",
        "≤ 2",
        "2.4 to 2.6",
    ]
    assert [wording.measured(check) for check in (GOOD, holds("x", False), NOT_RUN)] == ["yes", "no", ""]
    assert wording.measured(at_most("loss", None, 2)) == "no number"
    assert (wording.limit(GOOD), wording.interval(GOOD)) == ("", "")


def test_a_reason_is_one_line():
    check = holds("rows", False, detail="row 1:\n\n'x\u2028y'", remedy="Mend it.")
    assert wording.reason(verdict(check, BAD)) == "rows (row 1: 'x y'). Mend it. (and 1 more)"


def test_what_does_not_show_itself_is_spelled_out():
    assert wording.visible("a\n\x1b[31m\u202e\ud800\u200b") == "a\n\\u{1b}[31m\\u{202e}\\u{d800}\\u{200b}"
    assert wording.visible("é 你好 🙂") == "é 你好 🙂"


def test_a_long_text_is_cut():
    text = wording.visible("x" * 5_000)
    assert text.endswith("... 3000 more characters")
    assert len(text) < 2_100


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10 s"), (59.4, "59 s"), (125, "2 min 05 s"), (11520, "3 h 12 min")]
)
def test_a_duration_reads_well(seconds, text):
    assert wording.duration(seconds) == text
