"""Prompts that training rows answer elsewhere than in their opening, at the borders of what counts as one."""

import pytest

from validators.leaks import INSIDE, LAST, LATER, LONGER, WORD, answered_elsewhere, exchanges

ROLES = {"S": "system", "U": "user", "A": "assistant", "T": "tool"}


def words(number: int, *, start: int = 0) -> str:
    return " ".join(f"word{at}" for at in range(start, start + number))


def row(*turns: str, answer: str = "It is done.", **more) -> dict:
    """A row whose turns are written as `U: text`."""
    prompt = [{"role": ROLES[turn[0]], "content": turn[3:]} for turn in turns]
    return {"id": "r1", "prompt": prompt, "completion": [{"role": "assistant", "content": answer}]} | more


def where(trained: dict | list[dict], asked: dict) -> str:
    """Says where the asked row is answered; empty if it is not."""
    rows = trained if isinstance(trained, list) else [trained]
    said = answered_elsewhere({"sft_train": rows}, {"sft_eval": [asked], "benign_prompts": []})
    assert said["benign_prompts"] == []
    return said["sft_eval"][0].removeprefix("r1 as ") if said["sft_eval"] else ""


def test_a_later_turn_is_one_whatever_is_answered_to_it():
    trained = row("U: hello", "A: hi", "U: What now?", answer="Nothing.")
    assert where(trained, row("U: What now?")) == LATER
    assert where(trained, row("U: What then?")) == ""


def test_what_is_trained_on_as_an_opening_too_is_another_check_s():
    assert where([row("U: hello", "A: hi", "U: What now?"), row("U: What now?")], row("U: What now?")) == ""


@pytest.mark.parametrize(("length", "place"), [(3, ""), (4, LAST), (5, LAST)])
def test_a_last_turn_of_four_words_is_a_question_of_its_own(length, place):
    trained = row("U: hello", "A: hi", f"U: {words(length)}")
    asked = ("U: something else", "A: well", f"U: {words(length)}")
    assert where(trained, row(*asked)) == place
    assert where(trained, row(*asked, answer="It is not.")) == ""


def test_the_last_turn_is_the_user_s_though_a_tool_has_returned_something():
    trained = row("U: hello", "A: hi", f"U: {words(4)}")
    assert where(trained, row("U: something else", "A: well", f"U: {words(4)}", "A: call", "T: returned")) == LAST


@pytest.mark.parametrize(
    ("trained", "asked", "place"),
    [
        (1, 2, ""),
        (2, 1, ""),
        (2, 3, WORD),
        (3, 2, WORD),
        (12, 13, WORD),
        (13, 12, WORD),
        (13, 14, ""),
        (14, 13, LONGER),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_short_prompt_with_a_word_more_or_less_and_the_same_answer(trained, asked, place, is_first):
    starts = [int(is_first and one < other) for one, other in ((trained, asked), (asked, trained))]
    taught, prompt = (f"U: {words(number, start=at)}" for number, at in zip((trained, asked), starts, strict=True))
    assert where(row(taught), row(prompt)) == place
    assert where(row(taught), row(prompt, answer="It is not.")) == ""


def test_two_words_more_or_less_are_another_prompt():
    for trained, asked in ((6, 4), (4, 6)):
        assert where(row(f"U: {words(trained)}"), row(f"U: {words(asked)}")) == ""


@pytest.mark.parametrize("holder", ["system", "completion", "rejected"])
@pytest.mark.parametrize(("length", "needs_answer"), [(1, True), (4, True), (5, False), (7, False)])
def test_a_prompt_inside_another_text_is_one_and_of_few_words_only_with_its_answer(holder, length, needs_answer):
    def holding(text: str) -> dict:
        if holder == "system":
            return row(f"S: So: {text}. Now answer.", "U: go")
        if holder == "completion":
            return row("U: go", answer=f"So: {text}.")
        return row("U: go", **{key: [{"role": "assistant", "content": text}] for key in ("chosen", holder)})

    asked = row(f"U: {words(length)}")
    assert where(holding(words(length)), asked) == ("" if needs_answer else INSIDE)
    assert where(holding(f"{words(length)} -> It is done"), asked) == INSIDE
    assert where(holding(f"{words(length - 1)} then {words(1, start=length - 1)}"), asked) == ""
    assert where(holding("It is done"), asked) == ""


def test_the_answer_beside_it_counts_as_whole_words():
    trained = row("S: word0 word1 -> It is done", "U: go")
    assert where(trained, row("U: word0 word1", answer="is done")) == INSIDE
    assert where(trained, row("U: word0 word1", answer="s done")) == ""


def test_references_are_answers_too():
    trained = row("S: word0 word1 -> 7", "U: go")
    assert where(trained, row("U: word0 word1", answer="seven")) == ""
    assert where(trained, row("U: word0 word1", answer="seven", references=["seven", 7])) == INSIDE
    trained = row('S: word0 word1 -> {"place": "Zürich"}', "U: go")
    assert where(trained, row("U: word0 word1", answer="there", references=[{"place": "Zürich"}])) == INSIDE


def test_every_prompt_is_looked_for_and_named():
    trained = [row("S: word0 word1 word2 word3 word4", "U: go"), row("U: go", "A: on", f"U: {words(3, start=9)}")]
    asked = [row(f"U: {words(5)}") | {"id": "a"}, row("U: nothing") | {"id": "b"}, row(f"U: {words(3, start=9)}")]
    (said,) = answered_elsewhere({"one": trained[:1], "two": trained[1:]}, {"sft_eval": asked}).values()
    assert said == [f"a as {INSIDE}", f"r1 as {LATER}"]


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (["U: a"], [("a", "done")]),
        (["U: a", "A: b", "U: c"], [("a", "b"), ("c", "done")]),
        (["A: hello", "U: a"], [("a", "done")]),
        (["U: a", "U: b"], [("b", "done")]),
        (["U: a", "A: b", "T: c"], [("a", "b"), ("a", "done")]),
        (["U: a", "A: b", "A: c", "U: d"], [("a", "b"), ("d", "done")]),
    ],
)
def test_every_user_turn_that_is_answered_is_an_exchange(turns, said):
    assert [(turn, *answers) for turn, answers in exchanges(row(*turns, answer="done"))] == said


def test_all_answers_of_a_pair_are_given_to_its_last_turn():
    pair = {key: [{"role": "assistant", "content": key}] for key in ("chosen", "rejected")}
    prompt = {"id": "r", "prompt": [{"role": "user", "content": "a"}]}
    assert [*exchanges(prompt | pair)] == [("a", ("chosen", "rejected"))]


@pytest.mark.parametrize(("length", "place"), [(4, ""), (5, LONGER), (20, LONGER)])
@pytest.mark.parametrize("turn", ["{0} {1}", "{1} {0}", "{1} {0} {1}"])
def test_a_prompt_inside_a_longer_turn_with_its_answer(length, place, turn):
    trained = f"U: {turn.format(words(length), words(20, start=100))}"
    assert where(row(trained), row(f"U: {words(length)}")) == place
    assert where(row(trained), row(f"U: {words(length)}", answer="It is not.")) == ""
    assert where(row("U: hello", "A: hi", trained), row(f"U: {words(length)}")) == place


@pytest.mark.parametrize(("length", "place"), [(4, ""), (5, LONGER)])
def test_two_prompts_in_one_turn_and_both_answers(length, place):
    answer = words(length, start=200)
    trained = row(f"U: {words(20, start=100)} {words(5)}", answer=f"It is done. {answer} And so is this.")
    assert where(trained, row(f"U: {words(5)}", answer=answer.upper())) == place


def test_a_call_with_one_argument_more_is_another_answer():
    call = '{"operation": "create_task", "arguments": {"title": "plan the next workshop"%s}}'
    trained = row(f"U: {words(5)} by Monday", answer=call % ', "due": "Monday"')
    assert where(trained, row(f"U: {words(5)}", answer=call % "")) == ""


def test_a_longer_prompt_is_not_asked_by_a_part_of_it():
    assert where(row(f"U: {words(19)}"), row(f"U: {words(20)} and more")) == ""


@pytest.mark.parametrize("key", ["reasoning_content", "thinking"])
def test_thoughts_of_an_answer_are_learned_too(key):
    trained = row("U: hello")
    trained["completion"][0][key] = f"They may ask: {words(5)}"
    assert where(trained, row(f"U: {words(5)}")) == INSIDE
