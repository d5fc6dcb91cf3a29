"""Finds prompts of gates that training rows answer elsewhere than in their opening turn.

training rows, held-out rows and asked prompts -> by file, ids of the prompts with where their answer was learned

A prompt is asked elsewhere as a later turn of a conversation, inside a system turn, an answer or its thoughts, or with
its answer: inside a longer turn, or with one word more or less. Texts are compared by their skeletons. Of the training
rows only hashes stay in memory.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from posttrain.rows.formats import message_text, references_of, text_key, user_text
from posttrain.rows.keys import THOUGHTS
from posttrain.rows.skeleton import skeleton

MIN_WORDS = 5  # from which a text that stands inside another one does so by no coincidence
MIN_LAST_WORDS = 4  # of a last turn: "yes, please" is no question of its own
MAX_SHORT_WORDS = 12  # of longer texts, one that differs in a word is a near-duplicate

LATER, LAST = "a later turn", "its last turn and answer"
WORD, INSIDE = "one word more or less and its answer", "the text of a system turn or an answer"
LONGER = "a part of a longer turn and its answer"

Rows = dict[str, Iterable[dict]]
Exchange = tuple[str, tuple[str, ...]]  # what the user says, and the answers that rows give to it


def answered_elsewhere(trained: Rows, held_out: Rows) -> dict[str, list[str]]:
    """Lists prompts of each held-out file that a training row answers elsewhere than in its opening."""
    asked = {name: [Asked.of(row) for row in rows] for name, rows in held_out.items()}
    taught = Taught(Contents(one for some in asked.values() for one in some))
    for rows in trained.values():
        for row in rows:
            taught.add(row)
    return {name: [said for one in some if (said := taught.says(one))] for name, some in asked.items()}


@dataclass(frozen=True)
class Asked:
    """A prompt that a gate asks: its opening, the turn that is answered, and the answers that count as right."""

    row_id: str
    opening: str
    last: str
    answers: tuple[str, ...]  # none where only the prompt is known

    @classmethod
    def of(cls, row: dict) -> "Asked":
        """Reads a held-out row, or a prompt of a file that a gate asks."""
        turns = [message["content"] for message in row["prompt"] if message["role"] == "user"]
        own = [message_text(row[key][0]) for key in ("completion", "chosen") if key in row]
        references = references_of(row) if own else []
        texts = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in references]
        return cls(row["id"], user_text(row["prompt"]), turns[-1], tuple(dict.fromkeys([*own, *texts])))


class Taught:
    """Keys of everything that the training rows answer."""

    def __init__(self, contents: "Contents"):
        self.openings: set[bytes] = set()
        self.turns: set[bytes] = set()
        self.pairs: set[bytes] = set()  # a turn with its answer
        self.shortened: set[bytes] = set()  # without its first or last word
        self.contents = contents

    def add(self, row: dict) -> None:
        self.openings.add(_key(user_text(row["prompt"])))
        for turn, answers in exchanges(row):
            self.turns.add(_key(turn))
            for answer in answers:
                self.pairs.add(_key(turn, answer))
                self.shortened.update(_key(shorter, answer) for shorter in _shorter(turn))
            self.contents.look_in_turn(turn, answers)
        for message in row["prompt"]:
            if message["role"] == "system":
                self.contents.look_in(message["content"])
        for answer in (*_answers(row), *_thoughts(row)):
            self.contents.look_in(answer)

    def says(self, asked: Asked) -> str:
        """Says where a prompt is answered; empty if it is not, or if it is another row's opening, which is no news."""
        if _key(asked.opening) in self.openings:
            return ""
        where = self._where(asked)
        return f"{asked.row_id} as {where}" if where else ""

    def _where(self, asked: Asked) -> str:
        if _key(asked.opening) in self.turns:
            return LATER
        if len(skeleton(asked.last).split()) >= MIN_LAST_WORDS and any(
            _key(asked.last, answer) in self.pairs for answer in asked.answers
        ):
            return LAST
        for answer in asked.answers:
            lacks_a_word = any(_key(shorter, answer) in self.pairs for shorter in _shorter(asked.opening))
            if lacks_a_word or (_is_short(asked.opening) and _key(asked.opening, answer) in self.shortened):
                return WORD
        if asked.opening in self.contents.seen_in_turns:
            return LONGER
        return INSIDE if asked.opening in self.contents.seen else ""


@dataclass
class Contents:
    """Finds asked texts inside other texts, by the words with which they begin."""

    asked: Iterable[Asked]
    seen: set[str] = field(default_factory=set)  # openings that stand inside a text
    seen_in_turns: set[str] = field(default_factory=set)  # or inside a longer turn that has their answer
    by_start: dict[tuple[str, ...], list[tuple[list[str], Asked]]] = field(init=False)

    def __post_init__(self):
        self.by_start, self._looked_in = defaultdict(list), set()
        for one in self.asked:
            words = skeleton(one.opening).split()
            if words:
                self.by_start[tuple(words[:MIN_WORDS])].append((words, one))
        self.lengths = sorted({len(start) for start in self.by_start})

    def look_in(self, text: str) -> None:
        """Notes which prompts stand in the text: those of few words only together with an answer to them."""
        if (key := _key(text)) in self._looked_in:  # a system turn that all rows share
            return
        self._looked_in.add(key)
        words = skeleton(text).split()
        self.seen.update(asked.opening for own, asked in self._inside(words) if self._counts(own, asked, words))

    def look_in_turn(self, turn: str, answers: Iterable[str]) -> None:
        """Notes which prompts are a part of a user's turn, and their answer at least a part of the answer to it."""
        words = skeleton(turn).split()
        for own, asked in self._inside(words):
            if len(own) >= MIN_WORDS and _is_answered(asked, answers):
                self.seen_in_turns.add(asked.opening)

    def _inside(self, words: list[str]) -> Iterator[tuple[list[str], Asked]]:
        """Yields the prompts whose words stand among these, one after another."""
        for at in range(len(words)):
            for length in self.lengths:
                for own, asked in self.by_start.get(tuple(words[at : at + length]), ()):
                    if words[at : at + len(own)] == own:
                        yield own, asked

    def _counts(self, own: list[str], asked: Asked, words: list[str]) -> bool:
        if len(own) >= MIN_WORDS:
            return True
        whole = f" {' '.join(words)} "
        return any((inner := skeleton(answer)) and f" {inner} " in whole for answer in asked.answers)


def exchanges(row: dict) -> Iterator[Exchange]:
    """Yields every user turn that is answered in a row, with its answers."""
    turn = None
    for message in row["prompt"]:
        if message["role"] == "user":
            turn = message["content"]
        elif message["role"] == "assistant" and turn is not None:
            yield turn, (message_text(message),)
            turn = None
    if turn is None:  # the answer follows a tool's
        turn = next(message["content"] for message in reversed(row["prompt"]) if message["role"] == "user")
    yield turn, tuple(_answers(row))


def _answers(row: dict) -> list[str]:
    return [message_text(row[key][0]) for key in ("completion", "chosen", "rejected") if key in row]


def _is_answered(asked: Asked, answers: Iterable[str]) -> bool:
    """Tells whether an answer is that of the prompt, or holds it: one of a few words may stand there by coincidence.

    A skeleton lacks the brackets that end JSON, and so would stand in that of a longer object: the text itself must.
    """
    if {_key(answer) for answer in asked.answers} & {_key(answer) for answer in answers}:
        return True
    long = [_spaced(answer) for answer in asked.answers if len(answer.split()) >= MIN_WORDS]
    return any(part in _spaced(answer) for part in long for answer in answers)


def _spaced(text: str) -> str:
    return f" {' '.join(text.casefold().split())} "


def _thoughts(row: dict) -> list[str]:
    answers = [row[key][0] for key in ("completion", "chosen", "rejected") if key in row]
    return [answer[key] for answer in answers for key in THOUGHTS if answer.get(key)]


def _is_short(text: str) -> bool:
    return 2 <= len(skeleton(text).split()) <= MAX_SHORT_WORDS


def _shorter(text: str) -> list[str]:
    """The words of a short text without the first, and without the last; at least two words stay."""
    words = skeleton(text).split()
    return [" ".join(words[1:]), " ".join(words[:-1])] if 3 <= len(words) <= MAX_SHORT_WORDS + 1 else []


@lru_cache(maxsize=1 << 14)
def _key(*texts: str) -> bytes:
    return text_key(*texts)
