"""Where an answer differs from what counts as right."""

import time

from posttrain.pages.differences import pieces


def marked(answer: str, *references: str) -> list[str]:
    shown = pieces(answer, references)
    assert "".join(text for text, _ in shown) == answer
    return [text for text, differs in shown if differs]


def test_the_words_that_differ_from_the_nearest_reference_are_marked():
    assert marked('{"task": 83, "done": true}', "nothing like it", '{"task": 38, "done": true}') == ["83"]
    assert marked("the same", "the same") == []


def test_what_is_missing_has_an_empty_mark():
    assert marked("close task 38", "close the task 38") == [""]


def test_an_answer_like_no_reference_is_not_painted_all_over():
    assert marked("something else entirely", "42") == marked("no reference") == marked("", "42") == []


def test_long_answers_cost_no_time():
    start = time.perf_counter()
    assert marked("a b " * 5_000, "b a " * 5_000) == []
    assert time.perf_counter() - start < 1
