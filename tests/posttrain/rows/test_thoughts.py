import pytest

from posttrain.rows import thoughts


@pytest.mark.parametrize(
    ("written", "is_open", "parts"),
    [
        ('{"a": 1}', False, ("", '{"a": 1}')),
        ('<think>\n\n</think>\n\n{"a": 1}', False, ("<think>\n\n</think>\n\n", '{"a": 1}')),
        ('\n<think>Two.</think>{"a": 1}', False, ("\n<think>Two.</think>", '{"a": 1}')),
        ('Two.\n</think>\n\n{"a": 1}', True, ("Two.\n</think>\n\n", '{"a": 1}')),
        ("<think>one</think>a</think>b", False, ("<think>one</think>", "a</think>b")),
        ("<think>never closed", False, ("<think>never closed", "")),
        ("never closed", True, ("never closed", "")),
        ("the tag <think> in a text</think>", False, ("", "the tag <think> in a text</think>")),
    ],
)
def test_thoughts_and_what_is_said(written, is_open, parts):
    assert thoughts.parted(written, is_open=is_open) == parts


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [("assistant\n<think>\n", True), ("assistant\n<think>", True), ("<think>\n\n</think>\n\n", False), ("a\n", False)],
)
def test_a_prompt_that_opens_thoughts(prompt, is_open):
    assert thoughts.is_open(prompt) == is_open


@pytest.mark.parametrize(
    ("prompt", "whole", "content", "answer"),
    [
        ("A: ", "A: yes.", "yes", "yes."),
        ("A:<think>\n", "A:<think>\n\n</think>\n\nyes.", "yes", "\n</think>\n\nyes."),
        ("A:<think>\n", "A:yes.", "yes", "\n</think>\n\nyes."),
        ("A:<think>\n", "A:yes.", "<think>\nTwo.\n</think>\n\nyes", "Two.\n</think>\n\nyes."),
        ("A:<think>\n", "A:<call>", "<call>", "\n</think>\n\n<call>"),
        ("A:<think>\n\n</think>\n\n", "A:yes.", "yes", "yes."),
        ("A:", "A:yes.", "<think>Two.</think>yes", "<think>Two.</think>\n\nyes."),
        ("A:", "A:<think>\n\n</think>\n\nyes.", "yes", "<think>\n\n</think>\n\nyes."),
        ("A:(speak)", "A:yes.", "yes", None),
    ],
)
def test_the_answer_that_training_teaches(prompt, whole, content, answer):
    assert thoughts.answer_text(prompt, whole, content) == answer
