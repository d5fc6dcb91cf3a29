"""Memory over several turns: what the user said two or three turns ago is asked for."""

import random

from validators.skills.generators.draft import CITIES, COLORS, DAYS, JOBS, NAMES, Draft, draft, generated
from validators.skills.suites import Row

PETS = ("cat", "dog", "horse", "parrot", "rabbit", "hamster")
PET_NAMES = ("Rex", "Bella", "Max", "Luna", "Coco", "Milo", "Daisy", "Rocky", "Ruby", "Simba")
THINGS = ("car", "bicycle", "jacket", "tent", "boat", "cup", "lamp", "sofa", "bag", "phone")
FOODS = ("pizza", "soup", "rice", "pasta", "salad", "curry", "pancakes", "sushi", "lasagna", "bread")
APPOINTMENTS = ("dentist", "doctor", "barber", "lawyer", "bank", "garage")
BETWEEN = (  # what is talked about in between
    ("What is the capital of Spain?", "The capital of Spain is Madrid."),
    ("How many days does a week have?", "A week has seven days."),
    ("What do bees make?", "Bees make honey."),
    ("Which season comes after winter?", "Spring comes after winter."),
    ("What is frozen water called?", "Frozen water is called ice."),
    ("Is the sun a star?", "Yes, the sun is a star."),
)


def rows() -> list[Row]:
    """The suite."""
    return generated("memory", [name, city, pet, color, food, job, appointment, code])


def name(rng: random.Random) -> Draft:
    """The user's own name."""
    ours = rng.choice(NAMES)
    said = f"Hello, my name is {ours}. Can you help me?"
    return _asked(rng, said, "Hello, of course I can help you!", "What is my name?", ours, NAMES)


def city(rng: random.Random) -> Draft:
    """Where the user lives."""
    here = rng.choice([one for one in CITIES if one != "Madrid"])
    said = f"I live in {here} with my family."
    return _asked(rng, said, "That sounds nice.", "In which city does my family live?", here, CITIES)


def pet(rng: random.Random) -> Draft:
    """The name of the user's animal."""
    kind, called = rng.choice(PETS), rng.choice(PET_NAMES)
    said = f"I have a {kind}. Its name is {called}."
    return _asked(rng, said, "That sounds lovely!", f"What is the name of my {kind}?", called, PET_NAMES)


def color(rng: random.Random) -> Draft:
    """The color of something that the user has."""
    thing, ours = rng.choice(THINGS), rng.choice(COLORS)
    said = f"I have bought a new {thing}. The {thing} is {ours}."
    return _asked(rng, said, "That is a good choice.", f"What color is my {thing}?", ours, COLORS)


def food(rng: random.Random) -> Draft:
    """A question about the user's dinner."""
    name, dish = rng.choice(NAMES), rng.choice(FOODS)
    said = f"Tonight {name} and I will cook {dish} for dinner."
    return _asked(rng, said, "Enjoy your meal!", f"What will {name} and I cook for dinner?", dish, FOODS)


def job(rng: random.Random) -> Draft:
    """A question about the job of a friend of the user."""
    friend, theirs = rng.choice(NAMES), rng.choice(JOBS)
    said = f"My friend {friend} works as a {theirs}."
    return _asked(rng, said, "That is interesting work.", f"What does my friend {friend} work as?", theirs, JOBS)


def appointment(rng: random.Random) -> Draft:
    """On which day the user has an appointment."""
    day, where = rng.choice(DAYS), rng.choice(APPOINTMENTS)
    said = f"Please remember: my appointment at the {where} is on {day}."
    return _asked(rng, said, "I will remember it.", f"On which day is my appointment at the {where}?", day, DAYS)


def code(rng: random.Random) -> Draft:
    """A number that the user gave."""
    number = str(rng.randint(100, 999))
    said = f"The number of my locker is {number}."
    return _asked(rng, said, "All right, I have noted it.", "What is the number of my locker?", number, ())


def _asked(rng: random.Random, said: str, reply: str, question: str, answer: str, candidates: tuple[str, ...]) -> Draft:
    """`candidates` are all that could have been said: a guess is one of them, and no other may stand in an answer."""
    others = [one for one in candidates if one != answer and one not in said]
    return draft(
        said, reply, *rng.choice(BETWEEN), question,
        verifier="contains", reference=f"{answer}.", chance=round(1 / len(candidates), 3) if candidates else 0.0,
        any_of=[answer], none_of=others,
    )  # fmt: skip
