"""Multiple choice: four options with letters, one of which belongs to the category in question."""

import random

from validators.skills.generators.draft import Draft, draft, generated
from validators.skills.suites import Row

CATEGORIES = {
    "a fruit": ("apple", "banana", "pear", "cherry", "plum", "mango", "grape", "peach"),
    "a bird": ("eagle", "owl", "sparrow", "parrot", "penguin", "swan", "robin", "crow"),
    "a vehicle": ("bus", "truck", "bicycle", "tram", "taxi", "motorbike", "van", "lorry"),
    "a piece of furniture": ("chair", "table", "sofa", "wardrobe", "bookcase", "bench", "desk", "armchair"),
    "a musical instrument": ("violin", "piano", "guitar", "trumpet", "flute", "drum", "harp", "cello"),
    "a piece of clothing": ("shirt", "jacket", "skirt", "sock", "scarf", "glove", "coat", "sweater"),
    "a part of the body": ("knee", "elbow", "shoulder", "ear", "nose", "finger", "ankle", "chin"),
    "a tool": ("hammer", "saw", "screwdriver", "drill", "wrench", "pliers", "chisel", "shovel"),
    "a country": ("France", "Brazil", "Japan", "Canada", "Egypt", "Norway", "India", "Kenya"),
    "a planet": ("Mars", "Venus", "Saturn", "Neptune", "Jupiter", "Uranus"),
    "a metal": ("iron", "copper", "silver", "zinc", "aluminium", "lead", "gold", "tin"),
    "an insect": ("bee", "ant", "beetle", "butterfly", "mosquito", "moth", "wasp", "fly"),
}


def rows() -> list[Row]:
    """The suite. As many right answers are A as B, C or D."""
    return generated("choice", [_kind(letter) for letter in "ABCD"])


def _kind(letter: str):
    """Rows whose right answer has this letter."""

    def kind(rng: random.Random) -> Draft:
        asked, *others = rng.sample(list(CATEGORIES), 4)
        options = dict(zip([key for key in "ABCD" if key != letter], (_one(rng, name) for name in others), strict=True))
        options = dict(sorted((options | {letter: _one(rng, asked)}).items()))
        listed = "\n".join(f"{key}) {option}" for key, option in options.items())
        return draft(
            f"Which of these is {asked}?\n{listed}\nAnswer with the letter only.",
            verifier="choice", reference=letter, chance=0.25, letter=letter, options=options,
        )  # fmt: skip

    return kind


def _one(rng: random.Random, category: str) -> str:
    return rng.choice(CATEGORIES[category])
