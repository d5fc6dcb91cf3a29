"""answers.jsonl: what is written is read again, and failures come first."""

import json

import pytest

from posttrain.pages.answers import AnsweredPrompt, ModelAnswer, read, to_jsonl, worst_first

PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?\u2028"}]


def answer(text: str, score: float | None = None, fault: str | None = None) -> ModelAnswer:
    return ModelAnswer(text=text, stopped=True, score=score, fault=fault)


def row(model: ModelAnswer | None, **others) -> AnsweredPrompt:
    return AnsweredPrompt(
        source="held-out prompt", prompt=PROMPT, references=["4", {"value": 4}], model=model, **others
    )


def test_what_is_written_is_read_again():
    rows = [row(answer("5\n\u2028</script>", 0.0), base=answer("4", 1.0)), row(None)]
    text = to_jsonl(rows)
    assert read(text) == read(text.encode()) == rows
    assert json.loads(text.split("\n")[0])["references"] == ["4", {"value": 4}]


def test_a_line_that_is_no_row_is_refused():
    with pytest.raises(ValueError, match="prompt"):
        read('{"source": "held-out prompt"}\n')


@pytest.mark.parametrize(
    ("one", "is_wrong", "mark"),
    [
        (answer("4", 1.0), False, "right"),
        (answer("5", 0.0), True, "wrong"),
        (answer("4 or 5", 0.5), False, "right"),
        (answer("4 or 5", 0.49), True, "wrong"),
        (answer("4"), False, "not judged"),
        (answer("4", 1.0, "is not JSON"), True, "is not JSON"),
    ],
)
def test_what_is_said_of_an_answer(one, is_wrong, mark):
    assert (one.is_wrong, one.mark, row(one).is_wrong) == (is_wrong, mark, is_wrong)


def test_faults_come_first_then_what_was_lost_then_what_is_wrong():
    right, wrong, lost = row(answer("4", 1.0)), row(answer("5", 0.0)), row(answer("5", 0.0), base=answer("4", 1.0))
    fault, missing, half = row(answer("4", None, "is not JSON")), row(None), row(answer("4", 0.4))
    assert worst_first([right, half, wrong, missing, lost, fault])[0] is fault
    assert worst_first([right, half, wrong, lost]) == [lost, wrong, half, right]
