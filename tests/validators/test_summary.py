"""Markdown as a renderer sees it: markdown-it-py with tables and raw HTML on, as GitHub has them."""

import re

import pytest
from markdown_it import MarkdownIt

from posttrain.pages.skills import SkillScore
from posttrain.verdict import Check, Verdict, at_least, below, holds
from validators import summary

LOSS = below("held_out_loss", 2.41, 2.0, interval=(2.3, 2.5), detail="nats per token", remedy="Train longer.")
UNSURE = at_least("output_format_valid", 0.92, 0.9, interval=(0.85, 0.95), more_rows=41)
GOOD = holds("tokenizer_unchanged", True, detail="7 files", remedy="Copy it.")
HOSTILE = [
    "<script>alert(1)</script>",
    "a | b || c",
    "`code` ``` fence",
    "```\n# heading\n```",
    "[link](http://evil.example)",
    "![image](http://evil.example/x.png)",
    "**bold** _em_ ~~gone~~ snake_case_name",
    "<!-- hidden",
    "&lt;b&gt; &copy;",
    "trailing \\",
    "\\| \\`",
    "a\nb\n\n| c |",
    "$x$ #1 @everyone",
    "\u202e\x1b[31m\x00\ud800",
    "www.evil.example",
    "<b",
]


def verdict(*checks: Check, **more) -> Verdict:
    return Verdict(gate="check_sft", subject={"model": "ab" * 32}, checks=checks, **more)


def tokens(text: str) -> list:
    """All of them, those inside a line too."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return [inner for token in parser.parse(text) for inner in (token, *(token.children or ()))]


def cells(text: str) -> list[list[str]]:
    """The table as it reads, a row of the head first."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    rows = []
    for token in parser.parse(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and len(rows[-1]) < 6:
            rows[-1].append("".join(part.content for part in token.children))
    return rows


def test_a_failed_verdict_says_what_to_do_and_shows_each_check():
    text = summary.markdown(verdict(GOOD, LOSS, seconds={"loss": 41.2}))
    assert text.startswith("# `check_sft`: failed\n\n**Stopped by held\\_out\\_loss.** 1 of 2 checks did not pass")
    assert "- **`held_out_loss`**: Train longer.\n" in text
    assert "Copy it." not in text
    head, loss, good = cells(text)
    assert head == ["Check", "Status", "Value", "Limit", "Interval", "Detail"]
    assert [cell.replace("\u00a0", " ") for cell in loss] == [
        "held_out_loss",
        "failed",
        "2.41",
        "< 2",
        "2.3 to 2.5",
        "nats per token",
    ]
    assert good == ["tokenizer_unchanged", "passed", "yes", "", "", "7 files"]
    assert "| **failed** |" in text and "| passed |" in text
    assert "`loss` 41 s" in text
    assert "`abababababab`" in text


def test_an_undecided_and_a_passed_verdict():
    text = summary.markdown(verdict(GOOD, UNSURE))
    assert text.startswith("# `check_sft`: undecided\n\n**Undecided: about 41 more rows would decide.**")
    bare = Check(name="rows", status="failed")
    assert "What to do" not in summary.markdown(verdict(GOOD, bare))  # it has no remedy
    text = summary.markdown(verdict(GOOD))
    assert text.startswith("# `check_sft`: passed\n\n**Passed.** The one check passed.")
    assert "What to do" not in text


def test_a_skill_stands_in_a_table_that_breaks_no_number():
    score = SkillScore(
        name="choice", base=0.6, base_low=0.45, base_high=0.74, model=0.5, low=0.35, high=0.65, chance=0.25,
        num_rows=40, num_lost=6, num_gained=2, informative=True,
    )  # fmt: skip
    text = summary.markdown(verdict(GOOD, numbers=score.numbers()))
    row = "| `choice` | 60% (45 to 74) | 50% (35 to 65) | 6 lost, 2 gained |"
    assert row in text.replace("\u00a0", " ") and text.count("\u00a0") == 9


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_stays_text_in_its_cell(hostile):
    text = summary.markdown(verdict(holds(hostile, False, detail=hostile, remedy=hostile), LOSS))
    found = {token.type for token in tokens(text)}
    assert not found & {"html_inline", "html_block", "link_open", "image", "em_open", "s_open", "fence", "code_block"}
    assert [token.tag for token in tokens(text) if token.type == "heading_open"] == ["h1", "h2", "h2"]
    _, row, loss = cells(text)
    assert loss[0] == "held_out_loss"
    assert len(row) == 6
    assert row[1] == "failed"
    text.encode()


def test_hostile_text_reads_as_it_is():
    text = summary.markdown(verdict(holds("rows", False, detail="`a` | <b> [x](y) \\ a_b & ~c~ 1*2*3 \x1b")))
    assert cells(text)[1][5] == "`a` | <b> [x](y) \\ a_b & ~c~ 1*2*3 \\u{1b}"


def test_nothing_becomes_a_link_or_calls_a_person():
    text = summary.markdown(verdict(holds("x", False, detail="http://evil.example www.evil.example @everyone")))
    assert not {"http://", "www.", "@everyone"} & set(re.findall(r"http://|www\.|@everyone", text))
    assert cells(text)[1][5] == "http://evil.example www.evil.example @\u2060everyone"
