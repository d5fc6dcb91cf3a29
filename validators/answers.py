"""Judges generated answers one by one: are they well-formed, do they decline, do they repeat themselves?

answer, its prompt, the rule of the configuration -> what is wrong with it, or None; judged answers -> checks on shares

Whether an answer to a red-team prompt is harmless is decided in `validators.judges`.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from posttrain import config
from posttrain.rows.formats import is_blank, prompt_key, tools_of
from posttrain.rows.tools import names_of
from posttrain.verdict import Check
from validators import calls, intervals
from validators.inference import Answer

MAX_REPEATED_SHARE = 0.5  # of an answer's 4-grams; above it the answer repeats itself
LENGTH_LEARNED = (
    "The model learned length: the chosen answer is the {} one in most of your pairs. "
    "Add pairs where it is not, or raise validation.max_length_ratio."
)

Message = dict[str, Any]  # as in `posttrain.rows.formats`
Category = Literal["answer", "decline", "incoherent"]


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    prompt: list[Message]
    answer: Answer
    fault: str | None  # what is wrong with its form
    declined: bool = False  # with the fixed sentence

    @property
    def category(self) -> Category:
        return "decline" if self.declined else "answer" if self.fault is None else "incoherent"


def judge_format(
    prompts: list[list[Message]], answers: list[Answer], rule: config.OutputFormat, *, markers: list[str]
) -> list[JudgedAnswer]:
    """Judges every answer by the rule of `output_format_valid`.

    Args:
        markers: special tokens of the tokenizer, which no answer may contain.
    """
    find_fault = _rule(rule)

    def judged(prompt: list[Message], answer: Answer) -> JudgedAnswer:
        if not answer.stopped:
            return JudgedAnswer(prompt, answer, f"did not end by itself within {answer.num_tokens} tokens")
        if declines(answer.text, rule.declines_with):
            return JudgedAnswer(prompt, answer, None, declined=True)
        own = calls.MARKS if tools_of(prompt) else ()  # of the template, around the calls of an answer
        marker = next((marker for marker in markers if marker in answer.text and marker not in own), None)
        fault = f"contains the special token {marker}" if marker else find_fault(answer.text, prompt)
        if answer.thoughts and is_blank(answer.text):
            fault = "says nothing after its thoughts"
        return JudgedAnswer(prompt, answer, fault)

    return [judged(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def fault_finder(rule: config.OutputFormat) -> Callable[[str, list[Message]], str | None]:
    """Returns the function that says what is wrong with the form of a written answer; declining is always right."""
    find_fault = _rule(rule)

    def fault(text: str, prompt: list[Message]) -> str | None:
        return None if declines(text, rule.declines_with) else find_fault(text, prompt)

    return fault


def declines(text: str, sentence: str | None) -> bool:
    """Tells whether a whole answer, which was not cut off, is the declining sentence, or the same JSON value."""
    if sentence is None:
        return False
    if text.strip() == sentence.strip():
        return True
    wanted = parse_json(sentence)
    return wanted is not None and _canonical(parse_json(text)) == _canonical(wanted)


def repeated_share(answer: Answer) -> float:
    """Share of the answer's 4-grams of tokens that occur earlier in it: seq-rep-4 of arXiv:1908.04319."""
    four = [answer.tokens[at : at + 4] for at in range(len(answer.tokens) - 3)]
    return 1 - len(set(four)) / len(four) if four else 0.0


def num_sound(judged: list[JudgedAnswer] | None) -> int | None:
    return None if judged is None else sum(one.fault is None for one in judged)


def more_answers(answered: list | None, limits: config.AnswerLimits) -> str:
    """Says how to get more answers to held-out prompts: which of the keys that limit their number comes first."""
    if len(answered or []) >= limits.num_generated_answers:
        return "raise validation.num_generated_answers, and data.eval_fraction if no more prompts are held out"
    return "raise data.eval_fraction or add rows, and validation.num_generated_answers if it is below that"


def format_check(judged: list[JudgedAnswer] | None, limits: config.AnswerLimits) -> Check:
    """output_format_valid: the share of well-formed answers."""
    return intervals.share(
        "output_format_valid",
        num_sound(judged),
        len(judged or []),
        ">=",
        limits.min_format_valid_rate,
        confidence=limits.confidence,
        more_rows_by=more_answers(judged, limits),
        remedy="Look at the answers. Train longer, add rows in the form that they miss, "
        "or raise validation.max_new_tokens if they were cut off.",
    )


def stopped_check(judged: list[JudgedAnswer] | None, limits: config.AnswerLimits) -> Check:
    """answers_stop: the share of answers that end by themselves."""
    num_stopped = None if judged is None else sum(one.answer.stopped for one in judged)
    return intervals.share(
        "answers_stop",
        num_stopped,
        len(judged or []),
        ">=",
        limits.min_stopped_rate,
        confidence=limits.confidence,
        more_rows_by=more_answers(judged, limits),
        detail=f"within {limits.max_new_tokens} tokens",
        remedy="Check that the loss covers the end-of-turn token of the training rows, "
        "or raise validation.max_new_tokens if good answers are longer.",
    )


def repetition_check(judged: list[JudgedAnswer] | None, limits: config.AlignmentLimits) -> Check:
    """repetition_rate: the share of answers that repeat more than half of their 4-grams."""
    num = None if judged is None else sum(repeated_share(one.answer) > MAX_REPEATED_SHARE for one in judged)
    return intervals.share(
        "repetition_rate",
        num,
        len(judged or []),
        "<=",
        limits.max_repetition_rate,
        confidence=limits.confidence,
        more_rows_by=more_answers(judged, limits),
        detail=f"seq-rep-4 over {MAX_REPEATED_SHARE:g}",
        remedy="The model has lost its fluency: lower dpo.learning_rate or dpo.epochs, or raise dpo.beta.",
    )


def length_checks(
    before: list[JudgedAnswer] | None, after: list[JudgedAnswer] | None, limits: config.AlignmentLimits
) -> list[Check]:
    """Checks that answers are neither much longer nor much shorter than the previous model's, end token included."""
    tokens = [judged and [one.answer.num_tokens + 1.0 for one in judged] for judged in (after, before)]
    return [
        intervals.ratio(
            name,
            *tokens,
            relation,
            limit,
            confidence=limits.confidence,
            more_rows_by=more_answers(after, limits),
            detail="tokens of all answers, divided by those of the previous model",
            remedy=LENGTH_LEARNED.format(kind),
        )
        for name, relation, limit, kind in (
            ("length_ratio", "<=", limits.max_length_ratio, "longer"),
            ("length_ratio_shorter", ">=", 1 / limits.max_length_ratio, "shorter"),
        )
    ]


def drop_check(
    name: str, before: list[bool] | None, after: list[bool] | None, limit: float, *, confidence: float, **words
) -> Check:
    """By how much the share of prompts for which it is true has fallen, judged on the differences by prompt."""
    drops = [float(old) - float(new) for old, new in zip(before, after, strict=True)] if before and after else None
    if drops:
        counted = f"{sum(after)} of {len(after)}; previously {sum(before)}"
        words["detail"] = "; ".join(filter(None, [counted, words.get("detail", "")]))
    return intervals.mean(name, drops, "<=", limit, confidence=confidence, **words)


def format_drop_check(
    before: list[JudgedAnswer] | None, after: list[JudgedAnswer] | None, limits: config.AlignmentLimits
) -> Check:
    """output_format_drop: by how much the share of well-formed answers has fallen."""
    sound = [judged and [one.fault is None for one in judged] for judged in (before, after)]
    return drop_check(
        "output_format_drop",
        *sound,
        limits.max_format_drop,
        confidence=limits.confidence,
        more_rows_by=more_answers(after, limits),
        remedy="Training lost what the previous model could do: lower the stage's learning_rate, "
        "or add rows in the form that was lost.",
    )


def rate(judged: list[JudgedAnswer] | None) -> float | None:
    return num_sound(judged) / len(judged) if judged else None


def rates(judged: list[JudgedAnswer] | None) -> dict[str, float | None]:
    """Numbers about generated answers that the verdict shows."""
    if not judged:
        return {}
    num = len(judged)
    return {
        "num_answers": num,
        "format_valid_rate": rate(judged),
        "stopped_rate": sum(one.answer.stopped for one in judged) / num,
        "mean_answer_tokens": sum(one.answer.num_tokens for one in judged) / num,
        "incoherent_rate": sum(one.category == "incoherent" for one in judged) / num,
    }


def choose_rows(rows: list[dict], num: int) -> list[dict]:
    """At most `num` rows with different prompts, spread evenly: the beginning of a file is often all of one kind.

    Of the rows of a conversation the last one is chosen; where it offers tools, another turn each time: here a call,
    there the answer to what a tool returned.
    """
    by_prompt: dict[str, list[dict]] = {}
    for row in rows:
        by_prompt.setdefault(prompt_key(row), []).append(row)
    different, num = list(by_prompt.values()), min(num, len(by_prompt))
    chosen = [different[i * len(different) // num] for i in range(num)]
    return [some[at % len(some)] if tools_of(some[0]["prompt"]) else some[-1] for at, some in enumerate(chosen)]


def choose_prompts(rows: list[dict], num: int) -> list[list[Message]]:
    return [row["prompt"] for row in choose_rows(rows, num)]


def markers_of(tokenizer) -> list[str]:
    """The special tokens: parts of the chat template, never of an answer."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*tokenizer.all_special_tokens, *added})


def parse_json(text: str) -> Any:
    """The value, or None where the text is not JSON; NaN and infinity are not."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):  # a model's output is hostile: ten thousand brackets do this
        return None


def parse_call(text: str) -> dict | None:
    """The call, if the whole text is `{"name": str, "arguments": object}` and nothing else."""
    call = parse_json(text)
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
        return None
    return call if isinstance(call["name"], str) and isinstance(call["arguments"], dict) else None


def _rule(rule: config.OutputFormat) -> Callable[[str, list[Message]], str | None]:
    if rule.kind == "json_schema":
        return _schema_rule(rule.json_schema)
    if rule.kind == "regex":
        pattern = re.compile(rule.pattern)
        return lambda text, prompt: None if pattern.fullmatch(text) else "does not match the pattern"
    if rule.kind == "tool_call":
        return _tool_call_fault
    return _text_fault


def _text_fault(text: str, prompt: list[Message]) -> str | None:
    return "is empty" if is_blank(text) else None


def _schema_rule(schema: dict[str, Any]) -> Callable[[str, list[Message]], str | None]:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for
    from referencing import Registry

    kind = validator_for(schema, default=Draft202012Validator)
    kind.check_schema(schema)
    validator = kind(schema, registry=Registry())  # an empty registry: references are not fetched

    def fault(text: str, prompt: list[Message]) -> str | None:
        value = parse_json(text)
        if value is None:
            return "is not JSON"
        error = best_match(validator.iter_errors(value))
        return f"breaks the schema's {error.validator!r}" if error else None  # its path may hold the answer's own keys

    return fault


def _tool_call_fault(text: str, prompt: list[Message]) -> str | None:
    if offered := names_of(tools_of(prompt)):
        is_answer = prompt[-1]["role"] == "tool" and not any(mark in text for mark in calls.MARKS)
        return _text_fault(text, prompt) if is_answer else _calls_fault(calls.as_json(text, prompt), offered)
    call = parse_call(text)
    if call is None:
        return "is not one call with name and arguments"
    offered = any(_is_offered(call["name"], message["content"]) for message in prompt)
    return None if offered else "calls a function that was not offered"


def _calls_fault(text: str, offered: list[str]) -> str | None:
    """Says what is wrong with calls of the tools that a prompt offers, of which an answer may have several."""
    value = parse_json(text)
    called = [parse_call(json.dumps(one)) for one in (value if isinstance(value, list) else [value])]
    if not called or None in called:
        return "is not a call with name and arguments"
    return None if all(call["name"] in offered for call in called) else "calls a function that was not offered"


def _is_offered(name: str, text: str) -> bool:
    """Tells whether the text offers this function: `name(`, the name in quotes or first on a line, not in passing."""
    if not re.fullmatch(r"\S+", name):
        return False
    name = re.escape(name)
    return bool(re.search(rf"(?<![\w.]){name}\(|([\"'`]){name}\1|^[^\w\n]*{name}[ \t]*(:|$)", text, re.MULTILINE))


def _canonical(value: Any) -> str:
    """Text that only equal JSON values share; in Python, True == 1 == 1.0."""
    return json.dumps(value, sort_keys=True)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
