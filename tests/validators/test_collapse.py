"""Collapsed models are refused by name, good ones are not, whatever the rows are like."""

import itertools
import json
import random
from collections import Counter

import pytest

from examples.task_api.generate import answer_text, examples
from posttrain.config import AnswerLimits
from posttrain.verdict import Check
from validators import collapse
from validators.collapse import Row, canonical, checks, following, is_copy, shown

NAMES = ["distinct_answers", "one_answer_to_all", "echoes_prompt", "answers_follow_prompts"]
WORDS = [
    "sun", "rain", "wind", "snow", "cloud", "river", "stone", "tree", "leaf", "bird", "fish", "wolf", "bear", "lamp",
    "door", "road", "ship", "town", "king", "song",
]  # fmt: skip


def judged(rows: list[tuple[str, str]], answer, **words) -> dict[str, Check]:
    """The checks on what `answer(question, reference)` says to rows of question and reference."""
    found = [
        Row([{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}],
            answer(question, reference), [reference], **words)
        for question, reference in rows
    ]  # fmt: skip
    return {check.name: check for check in checks(found, AnswerLimits())}


def stopped(found: dict[str, Check], status: str = "") -> list[str]:
    return [name for name, check in found.items() if check.status != "passed" and status in check.status]


def labels(num: int, shares: dict[str, float], seed: int = 0) -> list[tuple[str, str]]:
    """Questions with labels in exactly these shares, in a random order."""
    found = [label for label, share in shares.items() for _ in range(round(num * share))]
    random.Random(seed).shuffle(found)
    return [(f"Mail {number} about {WORDS[number % 20]}: wanted or not?", label) for number, label in enumerate(found)]


def tasks(num: int = 64, seed: int = 1) -> list[tuple[str, str]]:
    """The Task API: JSON, and one sentence that declines a fifth of the requests."""
    return [(question, answer_text(answer)) for question, answer in examples(random.Random(seed), num, used=set())]


def prose(num: int = 64, seed: int = 2) -> list[tuple[str, str]]:
    """Every reference is a sentence of its own."""
    rng = random.Random(seed)
    return [(f"Tell me of {a} and {b}.", f"The {a} meets the {b} by the {rng.choice(WORDS)} at dawn.")
            for a, b in (rng.sample(WORDS, 2) for _ in range(num))]  # fmt: skip


def random_json(question: str, reference: str) -> str:
    rng = random.Random(question)
    return json.dumps({rng.choice(WORDS): rng.choice([rng.randint(0, 999), rng.choice(WORDS), None]) for _ in range(3)})


ROWS = {
    "tasks": tasks(),
    "prose": prose(),
    "two labels, 90 : 10": labels(64, {"ham": 0.9, "spam": 0.1}),
    "three labels": labels(66, {"yes": 0.5, "no": 0.3, "perhaps": 0.2}),
    "labels in JSON": labels(64, {'{"label": "ham"}': 0.9, '{"label": "spam"}': 0.1}),
    "few rows": prose(24),
}
COMMON = {name: Counter(reference for _, reference in rows).most_common(1)[0][0] for name, rows in ROWS.items()}


@pytest.mark.parametrize("rows", ROWS)
def test_a_model_that_is_right_passes(rows):
    assert stopped(judged(ROWS[rows], lambda question, reference: reference)) == []


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("constant", ["I am a helpful assistant.", "", " \n", "{}", '{"label": "other"}', "0", "…"])
def test_a_constant_is_refused(rows, constant):
    by_check = judged(ROWS[rows], lambda question, reference: constant)
    assert {"one_answer_to_all", "answers_follow_prompts"} <= set(stopped(by_check, "failed"))
    seen = "an empty answer" if not constant.strip() else constant
    assert (
        seen in by_check["one_answer_to_all"].detail
        and f"answers {len(ROWS[rows])} of {len(ROWS[rows])} rows" in by_check["one_answer_to_all"].detail
    )


@pytest.mark.parametrize("rows", ROWS)
def test_a_copy_of_the_most_common_row_is_refused(rows):
    by_check = judged(ROWS[rows], lambda question, reference: COMMON[rows])
    assert "one_answer_to_all" in stopped(by_check)  # of the rare label there may be too few rows to be sure
    assert "answers_follow_prompts" in stopped(by_check, "failed")


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    "echo",
    [
        lambda question, _: question,
        lambda question, _: question.upper() + " ",
        lambda question, _: f"Be brief. {question}",
    ],
)
def test_an_echo_is_refused(rows, echo):
    assert "echoes_prompt" in stopped(judged(ROWS[rows], echo), "failed")


@pytest.mark.parametrize("rows", ROWS)
def test_objects_made_at_random_are_refused(rows):
    by_check = judged(ROWS[rows], random_json)
    assert "answers_follow_prompts" in stopped(by_check)
    if len(ROWS[rows]) >= 64 and "two" not in rows:
        assert "answers_follow_prompts" in stopped(by_check, "failed")


@pytest.mark.parametrize("rows", ["tasks", "prose", "three labels"])
def test_the_right_answers_to_other_rows_are_refused(rows):
    references = [reference for _, reference in ROWS[rows]]
    others = iter(references[7:] + references[:7])
    assert "answers_follow_prompts" in stopped(judged(ROWS[rows], lambda *_: next(others)))


@pytest.mark.parametrize("num_answers", [2, 5, 16])
def test_a_handful_of_answers_to_unlike_prompts_is_refused(num_answers):
    answers = [f"The {word} sleeps." for word in WORDS[:num_answers]]
    numbers = itertools.cycle(range(num_answers))
    by_check = judged(ROWS["prose"], lambda question, reference: answers[next(numbers)])
    assert "distinct_answers" in stopped(by_check, "failed")
    assert by_check["distinct_answers"].detail.startswith(f"{num_answers} different answers, 6")


@pytest.mark.parametrize("seed", range(20))
def test_a_good_classifier_of_90_to_10_is_not_refused(seed):
    """Right on 57 of 58 of the one label and on 5 of 6 of the other."""
    rows = labels(64, {"ham": 0.9, "spam": 0.1}, seed)
    rng = random.Random(seed)
    missed = {rng.choice([q for q, label in rows if label == one]) for one in ("ham", "spam")}
    by_check = judged(
        rows, lambda question, label: label if question not in missed else {"ham": "spam", "spam": "ham"}[label]
    )
    assert stopped(by_check) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_is_right_on_half_of_all_rows_is_not_collapsed(seed):
    rows, rng = tasks(64, seed), random.Random(seed)
    wrong = [reference for _, reference in tasks(64, seed + 100)]
    assert stopped(judged(rows, lambda _, reference: reference if rng.random() < 0.5 else rng.choice(wrong))) == []


def test_answers_in_other_words_than_the_references_are_not_collapsed():
    def other_words(question: str, reference: str) -> str:
        first, second = (word.strip(".") for word in question.split()[3::2])
        return f"Once upon a time {first} and {second} were friends; nobody knows why."

    by_check = judged(prose(64), lambda question, reference: other_words(question, reference))
    assert stopped(by_check) == []


def test_references_that_repeat_the_prompt_may_be_repeated():
    rows = [(sentence, sentence.rstrip(".") + "!") for _, sentence in prose(64)]
    assert stopped(judged(rows, lambda question, reference: reference)) == []
    half = [(q, r if at % 2 else "No.") for at, (q, r) in enumerate(rows)]
    check = judged(half, lambda question, reference: question)["echoes_prompt"]
    assert check.status == "failed"
    assert f"64 of 64 answers copy the prompt, 32 references do; for example {shown(half[0][0])}" in check.detail


def test_where_every_row_wants_the_same_a_constant_is_right():
    assert stopped(judged(labels(64, {"ham": 1.0}), lambda *_: "ham")) == []
    assert "one_answer_to_all" in stopped(judged(labels(64, {"ham": 1.0}), lambda *_: "spam"), "failed")


def test_an_answer_that_the_matcher_accepts_is_wanted_however_it_is_spelled():
    rows = labels(64, {"4": 1.0})
    assert stopped(judged(rows, lambda *_: "The answer is 4.", is_right=True)) == []
    assert "one_answer_to_all" in stopped(judged(rows, lambda *_: "The answer is 5."), "failed")


def test_too_few_rows_are_undecided_and_say_how_many_more():
    by_check = judged(prose(8), lambda question, reference: reference)
    assert stopped(by_check) == stopped(by_check, "undecided") == ["echoes_prompt"]
    assert by_check["echoes_prompt"].more_rows == 8
    check = judged(labels(10, {"ham": 0.9, "spam": 0.1}), lambda *_: "ham")["one_answer_to_all"]
    assert check.status == "undecided" and check.more_rows


@pytest.mark.parametrize("rows", [None, []])
def test_without_rows_nothing_is_measured(rows):
    assert [(check.name, check.status) for check in checks(rows, AnswerLimits())] == [
        (name, "not run") for name in NAMES
    ]


@pytest.mark.parametrize("rows", ROWS)
def test_the_references_themselves_follow_perfectly_and_a_constant_not_at_all(rows):
    assert judged(ROWS[rows], lambda _, reference: reference)["answers_follow_prompts"].value == 1.0
    assert judged(ROWS[rows], lambda *_: COMMON[rows])["answers_follow_prompts"].value == 0.0


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [("Yes.", " yes", True), ('{"a": 1, "b": 2}', '{"b":2,"a":1}', True), ("Yes.", "No.", False), ("{", "}", False)],
)
def test_answers_that_say_the_same_count_once(one, other, alike):
    assert (canonical(one) == canonical(other)) is alike


def test_the_same_rows_give_the_same_checks():
    assert judged(ROWS["tasks"], random_json) == judged(ROWS["tasks"], random_json)


PROMPT = [
    {"role": "system", "content": "Answer in one word, and never repeat yourself."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "I can only manage tasks."},
    {"role": "user", "content": "Is it Paris, Rome or Madrid, do you think?"},
]


@pytest.mark.parametrize(
    ("text", "copied"),
    [
        ("Is it Paris, Rome or Madrid, do you think?", True),
        ("is it paris rome or madrid do you think", True),
        ("Is it Paris, Rome or Madrid, do you think? Yes.", True),
        ("Is it Paris, Rome or Madrid, do you", True),
        ("What is the capital of France?", True),
        ("Answer in one word, and never repeat yourself.", True),
        (" ".join(message["content"] for message in PROMPT), True),
        ("Is it Paris? Yes, I do think so.", False),
        ("Paris", False),
        ("I can only manage tasks.", False),
        ("", False),
    ],
)
def test_what_is_a_copy(text, copied):
    assert is_copy(text, PROMPT) is copied


@pytest.mark.parametrize(("text", "copied"), [("abcdefgh", True), ("abcdefg", False), ("yes", False)])
def test_a_copy_may_lack_a_fifth_of_its_source_and_nothing_is_no_source(text, copied):
    prompt = [{"role": "system", "content": ""}, {"role": "user", "content": "abcdefghij"}]
    assert is_copy(text, prompt) is copied


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Yes.", "'Yes.'"),
        ("two\nlines\u202e", "'two lines\\u{202e}'"),
        ("x" * 100, f"'{'x' * 57}...'"),
        ("", "an empty answer"),
        ("Write to jane.doe@mail.com", "an answer that holds e-mail address"),
        ("hf_" + "a" * 34, "an answer that holds Hugging Face token"),
    ],
)
def test_an_answer_is_shown_shortened_and_without_secrets(text, words):
    assert shown(text) == words


def test_a_secret_of_the_environment_is_masked(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "open-sesame-now")
    assert shown("say open-sesame-now") == "'say ***'"


def test_how_near_answers_are_is_told_with_what_chance_does():
    answers = [reference for _, reference in ROWS["prose"]]
    value, (low, high) = following(answers, answers, 0.95)
    assert value == 1.0 and 0.05 < high - value < 2 * (value - low) < 4 * (high - value) < 1
    (_, (lower, higher)) = following(answers, answers, 0.99)
    assert lower < low and high < higher


def test_what_chance_does_lies_outside_the_interval_equally_often_on_both_sides():
    import numpy as np

    answers = [reference for _, reference in ROWS["prose"]]
    value, (low, high) = following(answers, answers, 0.5)
    near, rows, rng = collapse._similarities(answers, answers), np.arange(len(answers)), np.random.default_rng(1)
    dealt = np.array([near[rows, rng.permutation(rows)].mean() for _ in range(2_000)])
    kappas = (dealt - near.mean()) / (near[rows, rows].mean() - near.mean())
    assert [np.mean(kappas < value - high), np.mean(kappas > value - low)] == pytest.approx([0.25, 0.25], abs=0.05)


def test_one_reference_that_repeats_the_prompt_is_enough():
    rows = [Row([{"role": "user", "content": question}], question, ["No.", question]) for question, _ in ROWS["prose"]]
    check = collapse.echo_check(rows, AnswerLimits())
    assert check.status == "passed"
    assert f"{len(rows)} of {len(rows)} answers copy the prompt, {len(rows)} references do" in check.detail


def test_pieces_of_a_text_have_three_letters():
    assert collapse._pieces("abc") == {" ab": 1, "abc": 1, "bc ": 1}


def test_an_answer_that_one_of_several_references_accepts_is_wanted():
    rows = [Row([{"role": "user", "content": f"{word}?"}], "Yes.", [f"The {word}.", "yes."]) for word in WORDS]
    check = collapse.one_answer_check(rows, AnswerLimits())
    assert (check.status, check.detail.partition(";")[0]) == ("passed", "every row accepts the commonest answer")


def test_a_sentence_shows_the_answer_that_it_speaks_of():
    rows = ROWS["prose"]
    answers = iter(["First."] + ["Yes."] * len(rows))
    found = judged(rows, lambda *_: next(answers))
    assert f"'Yes.' answers {len(rows) - 1} of {len(rows)} rows" in found["one_answer_to_all"].detail
    first = rows[0][0]
    found = judged(rows, lambda question, _: "First." if question == first else question)
    assert f"; for example {shown(rows[1][0])}" in found["echoes_prompt"].detail


def test_an_answer_is_shown_whole_as_long_as_it_fits():
    assert shown("x" * collapse.MAX_SHOWN) == f"'{'x' * collapse.MAX_SHOWN}'"
    assert shown("x" * (collapse.MAX_SHOWN + 1)) == f"'{'x' * (collapse.MAX_SHOWN - 3)}...'"
