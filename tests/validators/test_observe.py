"""What the alignment gates ask of each model, and which rows they leave out."""

import pytest

from posttrain.config import AlignmentLimits, CheckAlignmentStep, DpoConfig
from posttrain.rows import chat
from validators import inference, observe
from validators.answers import JudgedAnswer
from validators.inference import Answer
from validators.observe import Measurer, Questions

PROMPT = [{"role": "user", "content": "Add milk."}]
NOTHING = {"pairs": [], "sft_rows": [], "held_out": [], "red_team": [], "off_topic": [], "benign": []}
LIMITS = AlignmentLimits(skills=False, judge_model="org/guard")


def pair(chosen: str, rejected: str) -> dict:
    sides = {"chosen": chosen, "rejected": rejected}
    return {"prompt": PROMPT, **{key: [{"role": "assistant", "content": text}] for key, text in sides.items()}}


def measurer(tiny_model, *, max_seq_length: int = 512, names=("model", "before"), **questions) -> Measurer:
    step = CheckAlignmentStep(validation=LIMITS, dpo=DpoConfig(max_seq_length=max_seq_length))
    return Measurer(dict.fromkeys(names, tiny_model), Questions(**NOTHING | questions), step, "folder of the judge")


def test_pairs_with_an_answer_that_is_too_long_are_left_out(tiny_model):
    tokenizer = chat.load_tokenizer(tiny_model)
    pairs = [pair("Done. " * 8, "No."), pair("No.", "Done. " * 8), pair("Done. " * 9, "No."), pair("No.", "Done. " * 9)]
    rows = [[inference.token_row(tokenizer, PROMPT, one[key]) for key in ("chosen", "rejected")] for one in pairs]
    one = measurer(tiny_model, max_seq_length=len(rows[0][0]), pairs=pairs)
    one.load("model")
    logprobs = one.preferences("model")["model"]
    alone = inference.sequence_logprobs(one.session.model, tokenizer, [row for both in rows[:2] for row in both])
    assert logprobs == {"chosen": [alone[0], alone[2]], "rejected": [alone[1], alone[3]]}
    short = measurer(tiny_model, max_seq_length=len(rows[0][1]), pairs=pairs)
    short.session = one.session
    with pytest.raises(ValueError, match=r"none of 4 held-out pairs is within dpo.max_seq_length = \d+ tokens"):
        short.preferences("model")


def test_only_what_there_is_is_asked(tiny_model):
    assert list(measurer(tiny_model).parts()) == ["model_loads", "before_loads"]
    some = measurer(tiny_model, names=("model", "before", "base"), red_team=[PROMPT], benign=[PROMPT])
    assert list(some.parts()) == [
        "model_loads", "model_red_team_answers", "model_benign_answers", "before_loads", "before_red_team_answers",
        "base_loads", "base_red_team_answers", "red_team_answers_judged",
    ]  # fmt: skip


@pytest.mark.parametrize("base", ["base", "before"])
def test_skills_are_asked_of_the_model_and_of_its_base_alone(base, tiny_model):
    one = measurer(tiny_model, names={"model", "before", base})
    one.step = CheckAlignmentStep(validation=LIMITS.model_copy(update={"skills": ["arithmetic"]}))
    assert [name for name in one.parts() if name.endswith("skills")] == ["model_skills", f"{base}_skills"]


def test_an_answer_without_tokens_has_no_distribution(tiny_model):
    one = measurer(tiny_model)
    one.session.tokenizer = chat.load_tokenizer(tiny_model)
    judged = [JudgedAnswer(PROMPT, Answer("", True, 0), None), JudgedAnswer(PROMPT, Answer("a", True, 1, (7,)), None)]
    assert [row.completion for row in one._rows_of(judged)] == [[7]]


def test_the_judge_takes_the_place_of_the_model(tiny_model, monkeypatch):
    one = measurer(tiny_model)
    one.load("model")
    one.red_team = {"model": [JudgedAnswer(PROMPT, Answer("a", True, 1), None)]}
    monkeypatch.setattr(observe.judges, "load", lambda path: (path, one.session.model))
    monkeypatch.setattr(observe.judges, "by_model", lambda judge, judged: [judge] * len(judged))
    assert one.judge_harm() == {"model": {"harms": [("folder of the judge", None)]}}
