import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from posttrain.pages import defaults
from posttrain.pages.answers import AnsweredPrompt, ModelAnswer
from posttrain.verdict import Check, Verdict, above, at_least, at_most, holds
from validators import page

SHARE = at_least("output_format_valid", 0.5, 0.9, interval=(0.3, 0.7), detail="5 of 10", remedy="Train longer.")
DROP = at_most("chosen_drop", -0.02, 0.5)
HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\u202e\x1b[31m\ud800"


class Tags(HTMLParser):
    """Counts tags and refuses one that is closed without having been opened."""

    void = {"meta", "line", "circle", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def tags(text: str) -> list[str]:
    parser = Tags()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser.seen


def verdict(*checks: Check) -> Verdict:
    return Verdict(gate="check_sft", subject={"model": "ab" * 32}, checks=checks, numbers={"num_answers": 10})


def test_a_failed_verdict_says_what_stopped_it_and_what_to_do():
    text = page.html(verdict(DROP, SHARE))
    assert "Stopped by output_format_valid" in text
    assert "Train longer." in text
    assert "1 of 2 checks did not pass: 1 failed. The run stops at this gate." in text
    assert "ab" * 32 in text
    assert {"svg", "circle"} <= set(tags(text))


def test_a_passed_verdict_has_no_remedies():
    text = page.html(verdict(DROP, holds("tokenizer_unchanged", True, remedy="Copy it.")))
    assert "Passed" in text
    assert "Copy it." not in text
    tags(text)


def test_the_page_stands_alone():
    text = page.html(verdict(DROP, SHARE))
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text


def test_hostile_text_stays_text():
    answer = ModelAnswer(text=HOSTILE, stopped=True, fault=HOSTILE[:50])
    turns = [{"role": role, "content": HOSTILE} for role in ("system", "user")]
    shown = [
        AnsweredPrompt(source=source, prompt=turns, references=[HOSTILE, {HOSTILE: HOSTILE}], base=answer, model=answer)
        for source in ("red-team prompt", "held-out prompt")
    ]
    check = holds("<b>name</b>", False, detail='"><script>', remedy="<i>")
    text = page.html(verdict(check), answers=shown)
    assert not {"script", "img", "b", "i"} & set(tags(text))
    assert "\\u{202e}\\u{1b}[31m\\u{d800}" in text
    text.encode()


UNSURE = at_least("output_format_valid", 0.92, 0.9, interval=(0.85, 0.95), more_rows=41, remedy="Hold out more.")


def test_undecided_has_a_colour_and_a_sentence_of_its_own():
    text = page.html(verdict(DROP, UNSURE))
    assert '<h1 class="unsure">Undecided: about 41 more rows would decide</h1>' in text
    assert "Nothing failed" in text
    assert "About 41 more rows would decide, if the value stays: " in text and "Hold out more." not in text
    tags(text)


def test_each_status_has_its_tone():
    checks = {
        "good": DROP,
        "bad": SHARE,
        "unsure": UNSURE,
        "none": holds("over_refusal", None),
    }
    for tone, check in checks.items():
        assert f'<li class="{tone}">' in page.html(verdict(check))
        assert f'<span class="{tone}"' in page.html(verdict(check))
    timed_out = Check(name="judge", status="timed out", limit=0.9, relation=">=", detail="ended after 5.0 s")
    text = page.html(verdict(timed_out))
    assert '<span class="tone">timed out</span>' in text
    assert "ended after 5.0 s" in text
    assert '<li class="bad">' in text


def test_what_stopped_the_run_comes_first():
    text = page.html(verdict(DROP, holds("over_refusal", None), UNSURE, SHARE.model_copy(update={"name": "stops"})))
    names = re.findall(r"<h3[^>]*>(.*?)</h3>", text)
    assert names == ["stops", "output_format_valid", "over_refusal", "chosen_drop"]
    assert text.index("What stopped the run") < text.index("What passed")


def test_how_long_each_measurement_took():
    text = page.html(verdict(DROP).model_copy(update={"seconds": {"answers": 125.0}}))
    assert "<dt>answers</dt><dd>2 min 05 s</dd>" in text


def test_a_scale_of_numbers_beyond_all_measure_is_not_drawn():
    check = at_most("loss", 1.7e308, 2.0)
    assert page.scale_of(check) is None
    assert "nan" not in page.html(verdict(check))


def test_a_share_is_drawn_from_0_to_1():
    scale = page.scale_of(SHARE)
    assert scale.value == page.WIDTH / 2
    assert scale.interval[0] < scale.value < scale.interval[1] < scale.limit
    assert scale.allowed == (scale.limit, page.WIDTH)


def test_a_small_margin_is_not_taken_for_a_share():
    scale = page.scale_of(above("reward_margin", 0.009, 0.0, interval=(0.002, 0.016)))
    assert scale.limit < scale.interval[0] < scale.value < scale.interval[1]
    assert scale.value > page.WIDTH / 3


def test_other_numbers_are_drawn_with_their_limit():
    scale = page.scale_of(DROP)
    assert scale.value < scale.limit < page.WIDTH
    assert scale.allowed == (0, scale.limit)


def test_a_little_room_is_left_behind_the_last_number():
    scale = page.scale_of(at_most("loss", 1.0, 2.0))
    assert (scale.value, scale.limit, page.WIDTH) == (105.4, 202.8, 240)
    below = page.scale_of(at_most("loss", -2.0, -1.0))
    assert (below.value, below.limit) == (page.MARGIN, 105.4)


def test_a_share_of_none_is_a_share_too_and_more_than_all_is_not():
    none = page.scale_of(at_least("output_format_valid", 0.0, 0.9, interval=(0.0, 0.3)))
    assert (none.value, none.limit) == (8.0, 209.6)
    assert page.scale_of(at_least("answer_correct", 1.0, 0.9, interval=(0.5, 1.0))).limit == 209.6
    assert page.scale_of(at_least("pair_length_ratio", 1.5, 0.5, interval=(1.2, 2.0))).interval[1] < page.WIDTH


@pytest.mark.parametrize(("value", "limit", "is_drawn"), [(8e307, 0.0, True), (1e308, -1e308, False)])
def test_a_span_is_drawn_as_long_as_it_can_be_measured(value, limit, is_drawn):
    assert (page.scale_of(at_most("loss", value, limit)) is not None) is is_drawn


@pytest.mark.parametrize(
    "check", [holds("x", True), at_most("non_finite_tensors", 0, 0), at_most("missing", float("nan"), 0)]
)
def test_what_has_no_span_has_no_scale(check):
    assert page.scale_of(check) is None
    tags(page.html(verdict(check)))


def test_a_number_that_is_missing_shows_the_limit_alone():
    assert page.scale_of(at_most("loss", None, 2.0)).value is None
    assert "no number" in page.html(verdict(at_most("loss", None, 2.0)))


def asked(question: str, model: tuple[str, float, str | None], base: str = "base's", source: str = "held-out prompt"):
    text, score, fault = model
    return AnsweredPrompt(
        source=source,
        prompt=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}],
        references=["the reference", {"value": 4}],
        base=ModelAnswer(text=base, stopped=True, score=0.0),
        model=ModelAnswer(text=text, stopped=True, score=score, fault=fault),
    )


def section(text: str, title: str) -> str:
    return text.partition(f"<h2>{title}</h2>")[2].partition("</section>")[0]


def test_answers_stand_side_by_side_the_wrong_ones_first():
    rows = [asked(f"Question {number}?", (f"right {number}", 1.0, None)) for number in range(20)]
    rows += [asked("Hard?", ("far off", 0.0, None)), asked("Odd?", ("{", 0.0, "is not JSON"))]
    text = page.html(verdict(SHARE), answers=rows)
    table = section(text, "Answers side by side")
    assert table.index("Odd?") < table.index("Hard?") < table.index("Question 0?")
    assert table.count("<article>") == page.NUM_SIDE_BY_SIDE and "15 of 22 held-out prompts" in table
    for part in (
        "Counts as right",
        "the reference",
        "{&#34;value&#34;: 4}",
        "base&#39;s",
        ">SFT <",
        "system: Be brief.",
    ):
        assert part in table
    assert "Aligned" not in table
    tags(text)


def test_the_worst_answers_are_wrong_and_each_kind_of_fault_is_shown_before_a_second_of_any():
    rows = [asked(f"Q{number}?", (f"text {number}", 0.0, "is empty")) for number in range(6)]
    rows += [asked("Hard?", ("far off", 0.0, None)), asked("Easy?", ("right", 1.0, None))]
    rows += [asked("Harm?", ("take a knife", 1.0, "does not decline"), source="red-team prompt")]
    shown = page.worst(rows)
    assert [row.model.mark for row in shown] == ["is empty", "does not decline", "wrong", "is empty", "is empty"]
    text = page.html(verdict(SHARE), answers=rows)
    assert "right" not in section(text, "The worst answers")
    assert "Harm?" not in section(text, "Answers side by side")


def test_where_nothing_is_wrong_no_answer_is_called_the_worst():
    text = page.html(verdict(DROP), answers=[asked("Easy?", ("right", 1.0, None))])
    assert "The worst answers" not in text and "Answers side by side" in text
    unjudged = asked("Easy?", ("some text", 1.0, None)).model_copy(
        update={"model": ModelAnswer(text="some text", stopped=True)}
    )
    text = page.html(verdict(DROP), answers=[unjudged])
    assert "The worst answers" not in text and "not judged" in text


def test_where_nobody_judged_the_content_the_first_words_say_so():
    text = page.html(verdict(DROP).model_copy(update={"answer_match": "none"}))
    assert '<h1 class="good">Passed; nobody judged the content of the answers</h1>' in text


def test_a_limit_that_is_weaker_than_the_default_is_marked_in_amber():
    weak = at_least("answer_correct", 0.4, 0.25, interval=(0.3, 0.5))
    text = page.html(verdict(weak, DROP))
    assert '<div class="warning"><strong>1 limit is weaker than the default</strong>' in text
    assert '<span class="weaker">weaker than ≥ 0.5</span>' in text
    tags(text)
    assert 'class="weaker"' not in page.html(verdict(DROP)) and 'class="warning"' not in page.html(verdict(DROP))


def test_every_check_that_has_a_default_is_one_of_a_gate():
    gates = "".join(file.read_text() for file in Path(page.__file__).parent.glob("*.py"))
    composed = {"train_rows"}  # of a side's name
    assert [name for name in defaults.KEYS if f'"{name}"' not in gates and name not in composed] == []
