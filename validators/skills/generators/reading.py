"""Reading comprehension: a text of two or three facts, and a question about one of them."""

import random

from validators.skills.generators.draft import CITIES, COLORS, DAYS, JOBS, NAMES, Draft, draft, generated, two
from validators.skills.suites import Row

THINGS = ("car", "door", "chair", "bicycle", "jacket", "tent", "house", "boat", "cup", "lamp", "sofa", "bag")
PLACES = ("kitchen", "garden", "office", "garage", "library", "cellar", "bathroom", "attic")
GOODS = ("lamp", "chair", "clock", "mirror", "blanket", "basket", "kettle", "radio", "table", "vase")
EVENTS = ("meeting", "concert", "exam", "party", "dinner", "interview", "lecture", "football match")
PETS = ("cat", "dog", "horse", "parrot", "rabbit", "hamster")
PET_NAMES = ("Rex", "Bella", "Max", "Luna", "Coco", "Milo", "Daisy", "Rocky", "Ruby", "Simba")


def rows() -> list[Row]:
    """The suite."""
    return generated("reading", [home, color, job, place, age, day, pet, finder])


def home(rng: random.Random) -> Draft:
    """Where somebody lives."""
    text, facts = _person(rng)
    return _asked(text, f"Where does {facts['name']} live?", facts["city"], [facts["job"], facts["age"]])


def job(rng: random.Random) -> Draft:
    """A question about somebody's job."""
    text, facts = _person(rng)
    return _asked(text, f"What is the job of {facts['name']}?", facts["job"], [facts["city"], facts["age"]])


def age(rng: random.Random) -> Draft:
    """How old somebody is."""
    text, facts = _person(rng)
    return _asked(text, f"How old is {facts['name']}?", facts["age"], [facts["job"], facts["city"]])


def color(rng: random.Random) -> Draft:
    """Asks which color one of two things has."""
    (a, b), (first, second), name = two(rng, THINGS), two(rng, COLORS), rng.choice(NAMES)
    text = f"{name} has a {a} and a {b}. The {a} is {first}. The {b} is {second}."
    return _asked(text, f"What color is the {b}?", second, [first])


def place(rng: random.Random) -> Draft:
    """Asks in which room one of two people is."""
    (a, b), (here, there) = two(rng, NAMES), two(rng, PLACES)
    text = f"It is raining. {a} is in the {here}. {b} is in the {there}."
    return _asked(text, f"In which room is {b}?", there, [here])


def day(rng: random.Random) -> Draft:
    """Asks on which day one of two events is."""
    (a, b), (first, second) = two(rng, EVENTS), two(rng, DAYS)
    text = f"This week is busy. The {a} is on {first} and the {b} is on {second}."
    return _asked(text, f"On which day is the {a}?", first, [second])


def pet(rng: random.Random) -> Draft:
    """Asks the name of an animal, not of its owner."""
    owner, kind, called, city = rng.choice(NAMES), rng.choice(PETS), rng.choice(PET_NAMES), rng.choice(CITIES)
    text = f"{owner} lives in {city} with a {kind}. The {kind} is called {called} and sleeps all day."
    return _asked(text, f"What is the name of the {kind}?", called, [owner, city])


def finder(rng: random.Random) -> Draft:
    """Asks who of two people did something."""
    (a, b), (first, second) = two(rng, NAMES), two(rng, GOODS)
    text = f"At the market {a} bought a {first}, and {b} bought a {second}. Then they went home."
    return _asked(text, f"Who bought the {second}?", b, [a])


def _person(rng: random.Random) -> tuple[str, dict[str, str]]:
    facts = {"name": rng.choice(NAMES), "city": rng.choice(CITIES), "job": rng.choice(JOBS)}
    facts["age"] = str(rng.randint(20, 69))
    return "{name} is {age} years old, lives in {city} and works as a {job}.".format(**facts), facts


def _asked(text: str, question: str, answer: str, others: list[str]) -> Draft:
    """`others` are what the text offers beside the answer. A single one is a candidate that a guess may name as well;
    several are facts of other kinds, and only an answer that lists them all is wrong.
    """
    wrong, chance = ({"none_of": others}, 0.5) if len(others) == 1 else ({"not_all_of": others}, 0.0)
    return draft(
        f"{text}\n{question}",
        verifier="contains", reference=f"{answer}.", chance=chance, any_of=[answer], **wrong,
    )  # fmt: skip
