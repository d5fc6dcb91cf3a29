"""Suites are asked together where their answers may be equally long, and each answer is verified by its own row."""

from validators.inference import Answer
from validators.skills import asking, suites


def test_each_row_is_asked_once_with_the_limit_of_its_suite():
    asked = []

    def generate(model, tokenizer, prompts, *, max_new_tokens):
        asked.append((max_new_tokens, len(prompts)))
        return [Answer("12", True, 1) for _ in prompts]

    some = [suites.load(name, num_rows) for name, num_rows in (("arithmetic", 3), ("reading", 2), ("memory", 4))]
    answered = asking.ask(None, None, some, generate=generate)
    assert sorted(asked) == [(16, 3), (20, 6)]
    assert [(name, len(judged)) for name, judged in answered.items()] == [
        ("arithmetic", 3),
        ("reading", 2),
        ("memory", 4),
    ]
    assert [one.prompt for one in answered["memory"]] == [row.prompt for row in some[2].rows]


def test_an_answer_is_right_by_the_verifier_of_its_row():
    suite = suites.load("arithmetic", 2)

    def generate(model, tokenizer, prompts, *, max_new_tokens):
        return [Answer(suite.rows[0].reference, True, 1) for _ in prompts]

    judged = asking.ask(None, None, [suite], generate=generate)["arithmetic"]
    assert [one.fault for one in judged] == [None, "is wrong"]
