"""Drafts of rows, which all generators share, and their assembly into a suite.

kinds of drafts -> rows without duplicates, which alternate between the kinds
"""

import random
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

from validators.skills.suites import Message, Row

NUM_ROWS = 120  # of a suite whose rows are generated
NAMES = (
    "Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jack", "Karen", "Leo", "Maria",
    "Nina", "Oscar", "Paul", "Rosa", "Sam", "Tina", "Victor", "Wendy", "Adam", "Lucy", "Peter",
)  # fmt: skip
CITIES = (
    "Rome", "Paris", "Oslo", "Madrid", "London", "Berlin", "Tokyo", "Cairo", "Lisbon", "Dublin", "Vienna", "Athens",
    "Boston", "Chicago", "Sydney", "Toronto", "Prague", "Lima", "Seoul", "Delhi",
)  # fmt: skip
JOBS = (
    "baker", "nurse", "teacher", "pilot", "farmer", "lawyer", "painter", "dentist", "driver", "gardener", "plumber",
    "writer", "singer", "chef", "carpenter", "tailor",
)  # fmt: skip
COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "purple", "orange", "gray")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

Draft = dict[str, Any]  # the fields of a row but its id
Kind = Callable[[random.Random], Draft]


def user(*turns: str) -> list[Message]:
    """A conversation in which user and assistant take turns; the user begins."""
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]


def draft(*turns: str, verifier: str, reference: str, chance: float = 0.0, **arguments: Any) -> Draft:
    """A row without its id."""
    return {
        "prompt": user(*turns), "verifier": verifier, "arguments": arguments, "reference": reference, "chance": chance,
    }  # fmt: skip


def generated(suite: str, kinds: list[Kind], *, num: int = NUM_ROWS) -> list[Row]:
    """`num` different rows, as many of each kind as of any other. The suite's name is the seed."""
    rng, seen = random.Random(suite), set()
    return alternating(suite, [list(_different(kind, rng, seen, -(-num // len(kinds)))) for kind in kinds])[:num]


def alternating(suite: str, groups: list[list[Draft]]) -> list[Row]:
    """Rows that take one draft of each group in turn, so that the first few show every kind."""
    drafts = [one for turn in zip_longest(*groups) for one in turn if one is not None]
    return [Row(id=f"{suite}-{number:03}", **one) for number, one in enumerate(drafts, start=1)]


def shuffled(suite: str, drafts: list[Draft]) -> list[Draft]:
    """Written drafts in an order that has nothing to do with how they were written down."""
    return random.Random(suite).sample(drafts, len(drafts))


def two(rng: random.Random, words: tuple[str, ...]) -> list[str]:
    """Two different ones."""
    return rng.sample(words, 2)


def _different(kind: Kind, rng: random.Random, seen: set[tuple[str, str]], num: int) -> Iterator[Draft]:
    """Drafts whose last question or its answer differs from all that were seen.

    Raises:
        ValueError: the kind has no more of them.
    """
    wanted = len(seen) + num
    for _ in range(200 * num):
        one = kind(rng)
        if (key := (one["prompt"][-1]["content"], one["reference"])) not in seen:
            seen.add(key)
            yield one
            if len(seen) == wanted:
                return
    raise ValueError(
        f"{one['prompt'][-1]['content']!r}: its kind does not give {num} different rows: give it more words"
    )
