"""JSON form: a sentence is to be written as an object with named keys, after one that shows how."""

import json
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from validators.skills.generators.draft import CITIES, COLORS, DAYS, JOBS, NAMES, Draft, draft, generated, two
from validators.skills.suites import Row

GOODS = ("lamp", "chair", "clock", "mirror", "blanket", "basket", "kettle", "radio", "table", "vase")
EVENTS = ("meeting", "concert", "exam", "party", "dinner", "interview", "lecture", "workshop")
COUNTRIES = {
    "Rome": "Italy", "Paris": "France", "Oslo": "Norway", "Madrid": "Spain", "Berlin": "Germany", "Tokyo": "Japan",
    "Cairo": "Egypt", "Lisbon": "Portugal", "Dublin": "Ireland", "Vienna": "Austria", "Athens": "Greece",
    "Lima": "Peru", "Prague": "Czechia", "Ottawa": "Canada", "Nairobi": "Kenya", "Havana": "Cuba",
}  # fmt: skip
SHOPPING = ("milk", "bread", "eggs", "rice", "butter", "cheese", "apples", "sugar", "coffee", "salt")

Sentence = tuple[str, dict[str, Any]]  # and the object that says the same
Kind = Callable[[random.Random], Sentence]


def rows() -> list[Row]:
    """The suite."""
    kinds = (person, product, event, worker, place, shopping, switch, two_people)
    return generated("json_form", [partial(_taught, sentence=one) for one in kinds])


def person(rng: random.Random) -> Sentence:
    """A text and a number."""
    name, age = rng.choice(NAMES), rng.randint(18, 80)
    return f"{name} is {age} years old.", {"name": name, "age": age}


def product(rng: random.Random) -> Sentence:
    """A text and a number, in other words."""
    item, price = rng.choice(GOODS), rng.randint(5, 95)
    return f"The {item} costs {price} dollars.", {"item": item, "price": price}


def event(rng: random.Random) -> Sentence:
    """Two texts."""
    title, day = rng.choice(EVENTS), rng.choice(DAYS)
    return f"The {title} is on {day}.", {"event": title, "day": day}


def worker(rng: random.Random) -> Sentence:
    """Three texts."""
    name, job, city = rng.choice(NAMES), rng.choice(JOBS), rng.choice(CITIES)
    return f"{name} works as a {job} in {city}.", {"name": name, "job": job, "city": city}


def place(rng: random.Random) -> Sentence:
    """Two texts, the keys in another order than the sentence."""
    city = rng.choice(list(COUNTRIES))
    name = rng.choice(NAMES)
    text = f"{name} was born in {city}, which is in {COUNTRIES[city]}."
    return text, {"country": COUNTRIES[city], "city": city, "name": name}


def shopping(rng: random.Random) -> Sentence:
    """A list of texts."""
    items, shop = rng.sample(SHOPPING, 3), rng.choice(("market", "bakery", "supermarket", "corner shop"))
    text = f"At the {shop} we need {items[0]}, {items[1]} and {items[2]}."
    return text, {"shop": shop, "items": items}


def switch(rng: random.Random) -> Sentence:
    """A text and a truth value."""
    thing, color = rng.choice(("lamp", "heater", "radio", "alarm", "fan", "oven")), rng.choice(COLORS)
    is_on = rng.choice((True, False))
    text = f"The {color} {thing} is switched {'on' if is_on else 'off'}."
    return text, {"device": thing, "color": color, "on": is_on}


def two_people(rng: random.Random) -> Sentence:
    """Two texts and a number."""
    (sender, receiver), amount = two(rng, NAMES), rng.randint(5, 95)
    text = f"{sender} sent {amount} euros to {receiver}."
    return text, {"from": sender, "to": receiver, "amount": amount}


def _taught(rng: random.Random, sentence: Kind) -> Draft:
    """The kind's sentence twice: the first with its object, the second to be answered."""
    (shown, example), (text, value) = sentence(rng), sentence(rng)
    question = f"Write as JSON with the keys {', '.join(value)}: {{}}"
    if example == value:
        return _taught(rng, sentence)
    return draft(
        question.format(shown), json.dumps(example), question.format(text),
        verifier="json", reference=json.dumps(value), value=value,
    )  # fmt: skip
