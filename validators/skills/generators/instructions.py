"""Instructions that code can verify: length, case, form, first and last words, after IFEval."""

import random

from validators.skills.generators.draft import Draft, draft, generated, two
from validators.skills.suites import Row

TOPICS = {  # topic: words of which an answer about it holds one
    "the sea": ["sea", "ocean", "wave", "water"],
    "winter": ["winter", "snow", "cold", "ice"],
    "a dog": ["dog", "puppy", "bark"],
    "a cat": ["cat", "kitten", "purr"],
    "the moon": ["moon", "night", "sky"],
    "a garden": ["garden", "flower", "plant"],
    "the rain": ["rain", "drop", "cloud"],
    "a train": ["train", "rail", "station"],
    "music": ["music", "song", "melod", "sound"],
    "bread": ["bread", "bake", "loaf", "dough"],
    "a river": ["river", "water", "flow"],
    "the sun": ["sun", "light", "warm"],
    "a book": ["book", "page", "read", "stor"],
    "a tree": ["tree", "lea", "branch"],
    "friendship": ["friend"],
    "a horse": ["horse", "rid", "gallop"],
}
LISTS = {
    "fruits": ["apple", "banana", "orange", "pear", "grape", "mango", "cherr", "strawberr", "kiwi", "peach"],
    "colors": ["red", "blue", "green", "yellow", "black", "white", "orange", "purple", "pink", "brown"],
    "animals": ["dog", "cat", "horse", "lion", "tiger", "elephant", "cow", "bird", "bear", "fish", "wolf", "giraffe"],
    "vegetables": ["carrot", "potato", "tomato", "onion", "pea", "bean", "broccoli", "spinach", "cabbage", "lettuce"],
    "countries": ["france", "spain", "italy", "germany", "china", "japan", "india", "canada", "brazil", "united"],
    "drinks": ["water", "tea", "coffee", "milk", "juice", "lemonade", "soda", "wine", "beer"],
    "sports": ["football", "soccer", "tennis", "basketball", "golf", "hockey", "swimming", "baseball", "running"],
    "tools": ["hammer", "saw", "drill", "screwdriver", "wrench", "pliers", "knife", "axe", "shovel"],
}
SENTENCES = (
    "The old dog sleeps by the fire.", "A small boat crosses the lake.", "My sister reads a book every week.",
    "The train to the north is late.", "Two birds sit on the roof.", "Fresh bread smells wonderful.",
    "The children play in the garden.", "It rained the whole night.", "He forgot his keys at home.",
    "The museum opens at ten.", "A cold wind blows from the east.", "She paints the door green.",
    "The shop on the corner sells tea.", "We walked along the river.", "The moon is bright tonight.",
    "Our neighbor grows tomatoes.",
)  # fmt: skip
OPENINGS = ("Of course", "Once upon a time", "In my opinion", "Dear reader", "Good morning", "As we all know")
CLOSINGS = ("Thank you", "That is all", "Good night", "Over and out", "The end", "Best wishes")
WORDS = ("hello", "apple", "river", "green", "music", "window", "paper", "summer", "orange", "silver", "happy", "table")
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}


def rows() -> list[Row]:
    """The suite."""
    return generated("instructions", [copy, opening, upper, bullets, repeated, lines, lower, one_word, closing, quoted])


def copy(rng: random.Random) -> Draft:
    """A sentence to be repeated as it is."""
    sentence = rng.choice(SENTENCES)
    return _asked(f"Repeat this sentence exactly: {sentence}", sentence, {"rule": "is_exactly", "phrase": sentence})


def one_word(rng: random.Random) -> Draft:
    """An example of a kind, in one word."""
    kind, asks = (
        rng.choice(list(LISTS)),
        rng.choice(("Name one of the {} that you know.", "Pick one of all {}.", "Give one example of {}.")),
    )
    return _asked(
        f"{asks.format(kind)} Answer with exactly one word.", LISTS[kind][0].title(),
        {"rule": "num_words", "number": 1}, _mentions(LISTS[kind]),
    )  # fmt: skip


def upper(rng: random.Random) -> Draft:
    """A sentence in capitals, after one that shows how."""
    (shown, sentence), question = two(rng, SENTENCES), "Write this sentence in capital letters: {}"
    return draft(
        question.format(shown), shown.upper(), question.format(sentence),
        verifier="follows", reference=sentence.upper(),
        rules=[{"rule": "is_exactly", "phrase": sentence}, {"rule": "upper_case"}],
    )  # fmt: skip


def lower(rng: random.Random) -> Draft:
    """A sentence in lower case."""
    sentence = rng.choice(SENTENCES)
    return _asked(
        f"Write this sentence in lower case letters only: {sentence.upper()}", sentence.lower(),
        {"rule": "is_exactly", "phrase": sentence}, {"rule": "lower_case"},
    )  # fmt: skip


def bullets(rng: random.Random) -> Draft:
    """A list of so many bullet points."""
    kind, number = rng.choice(list(LISTS)), rng.choice(list(NUMBERS))
    wanted = "\n".join(f"- {one.title()}" for one in LISTS[kind][:number])
    return _asked(
        f"List exactly {NUMBERS[number]} {kind} as bullet points. Write nothing else.", wanted,
        {"rule": "num_bullets", "number": number}, {"rule": "num_lines", "number": number}, _mentions(LISTS[kind]),
    )  # fmt: skip


def repeated(rng: random.Random) -> Draft:
    """A word so many times, after one that shows how."""
    (shown, word), (count, number) = two(rng, WORDS), rng.sample(list(NUMBERS), 2)
    question = "Write the word {} {} times."
    return draft(
        question.format(shown, NUMBERS[count]), " ".join([shown] * count), question.format(word, NUMBERS[number]),
        verifier="follows", reference=" ".join([word] * number),
        rules=[{"rule": "repeats", "word": word, "number": number}],
    )  # fmt: skip


def opening(rng: random.Random) -> Draft:
    """A sentence with its first words."""
    phrase, topic = rng.choice(OPENINGS), rng.choice(list(TOPICS))
    return _asked(
        f'Write one short sentence about {topic}. Begin with the words: {phrase}',
        f"{phrase}, {TOPICS[topic][0]} is a subject for poets.",
        {"rule": "starts_with", "phrase": phrase}, _mentions(TOPICS[topic]),
    )  # fmt: skip


def closing(rng: random.Random) -> Draft:
    """A sentence with its last words."""
    phrase, topic = rng.choice(CLOSINGS), rng.choice(list(TOPICS))
    return _asked(
        f'Write one short sentence about {topic}. End with the words: {phrase}',
        f"Everyone knows {TOPICS[topic][0]}. {phrase}.",
        {"rule": "ends_with", "phrase": phrase}, _mentions(TOPICS[topic]),
    )  # fmt: skip


def quoted(rng: random.Random) -> Draft:
    """A sentence in quotation marks."""
    topic = rng.choice(list(TOPICS))
    return _asked(
        f"Write one short sentence about {topic}. Put your whole answer in double quotation marks.",
        f'"Everyone knows {TOPICS[topic][0]}."', {"rule": "in_quotes"}, _mentions(TOPICS[topic]),
    )  # fmt: skip


def lines(rng: random.Random) -> Draft:
    """Two words on two lines, after two that show how."""
    (first, second), (one, other) = two(rng, WORDS), two(rng, WORDS)
    question = "Write the words {} and {}, one on each line."
    return draft(
        question.format(one, other), f"{one}\n{other}", question.format(first, second),
        verifier="follows", reference=f"{first}\n{second}",
        rules=[{"rule": "is_exactly", "phrase": f"{first} {second}"}, {"rule": "num_lines", "number": 2}],
    )  # fmt: skip


def _mentions(words: list[str]) -> dict:
    return {"rule": "mentions", "any_of": words}


def _asked(question: str, reference: str, *rules: dict) -> Draft:
    return draft(question, verifier="follows", reference=reference, rules=list(rules))
