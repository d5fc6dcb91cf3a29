"""Arithmetic in one step: sums, differences, products and simple stories. Two equations show how to answer."""

import random

from validators.skills.generators.draft import NAMES, Draft, draft, generated
from validators.skills.suites import Row

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
THINGS = ("apples", "books", "coins", "eggs", "stamps", "marbles", "pencils", "cards")
SHOWN = ("What is 7 - 3?", "7 - 3 = 4", "What is 2 + 3?", "2 + 3 = 5")


def rows() -> list[Row]:
    """The suite."""
    return generated("arithmetic", [small_sum, product, three, difference, words, tens, story, large_product])


def small_sum(rng: random.Random) -> Draft:
    """Two digits: 7 + 5."""
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return _asked(f"{a} + {b}", a + b)


def three(rng: random.Random) -> Draft:
    """Three digits: 2 + 3 + 4."""
    a, b, c = rng.randint(1, 5), rng.randint(1, 4), rng.randint(1, 4)
    return _asked(f"{a} + {b} + {c}", a + b + c)


def difference(rng: random.Random) -> Draft:
    """A difference that is neither of its numbers: 13 - 4."""
    b = rng.randint(2, 9)
    a = rng.choice([n for n in range(b + 1, 20) if n != 2 * b])
    return _asked(f"{a} - {b}", a - b)


def product(rng: random.Random) -> Draft:
    """The multiplication table: 6 x 7."""
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return _asked(f"{a} x {b}", a * b)


def large_product(rng: random.Random) -> Draft:
    """Tens times a digit: 30 x 4."""
    a, b = 10 * rng.randint(1, 9), rng.randint(2, 9)
    return _asked(f"{a} x {b}", a * b)


def tens(rng: random.Random) -> Draft:
    """Tens and a digit: 30 + 4."""
    a, b = 10 * rng.randint(1, 9), rng.randint(1, 9)
    return _asked(f"{a} + {b}", a + b)


def words(rng: random.Random) -> Draft:
    """Numbers as words: three plus four."""
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    return draft(*SHOWN, f"What is {WORDS[a]} plus {WORDS[b]}?", verifier="number", reference=f"{a + b}", value=a + b)


def story(rng: random.Random) -> Draft:
    """A story of one step whose result is neither of its numbers."""
    name, things, b = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, 6)
    a = rng.choice([n for n in range(b + 2, 13) if n != 2 * b])
    verb, result = rng.choice([("gets {} more", a + b), ("gives away {}", a - b)])
    question = f"{name} has {a} {things} and {verb.format(b)}. How many {things} does {name} have now?"
    return draft(*SHOWN, question, verifier="number", reference=f"{result} {things}", value=result)


def _asked(term: str, result: int) -> Draft:
    return draft(*SHOWN, f"What is {term}?", verifier="number", reference=f"{term} = {result}", value=result)
