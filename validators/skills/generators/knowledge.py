"""Common knowledge that a small model has some of: capitals, opposites, animals, numbers, nature, words."""

from validators.skills.generators.draft import Draft, alternating, draft, shuffled
from validators.skills.suites import Row

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo", "Egypt": "Cairo",
    "Portugal": "Lisbon", "Greece": "Athens", "Austria": "Vienna", "Norway": "Oslo", "Sweden": "Stockholm",
    "Poland": "Warsaw", "Hungary": "Budapest", "Ireland": "Dublin", "China": "Beijing", "Russia": "Moscow",
    "Finland": "Helsinki", "Denmark": "Copenhagen", "Cuba": "Havana", "Canada": "Ottawa", "Peru": "Lima",
    "Thailand": "Bangkok", "South Korea": "Seoul", "Argentina": "Buenos Aires",
}  # fmt: skip
OPPOSITES = {
    "hot": ["cold"], "big": ["small", "little", "tiny"], "up": ["down"], "day": ["night"], "black": ["white"],
    "happy": ["sad", "unhappy"], "open": ["closed", "close", "shut"], "fast": ["slow"], "old": ["young", "new"],
    "wet": ["dry"], "left": ["right"], "light": ["dark", "heavy", "darkness"], "high": ["low"], "rich": ["poor"],
    "strong": ["weak"], "first": ["last"], "early": ["late"], "full": ["empty"], "hard": ["soft", "easy"],
    "inside": ["outside"], "win": ["lose"], "love": ["hate"], "good": ["bad", "evil"], "tall": ["short"],
}  # fmt: skip
YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "horse": "foal", "bear": "cub", "lion": "cub",
    "duck": "duckling", "pig": "piglet", "frog": "tadpole", "goat": "kid", "deer": "fawn",
}  # fmt: skip
PLURALS = {
    "mouse": "mice", "child": "children", "foot": "feet", "tooth": "teeth", "man": "men", "woman": "women",
    "goose": "geese", "leaf": "leaves", "knife": "knives", "box": "boxes", "city": "cities", "wolf": "wolves",
}  # fmt: skip
COUNTS = {
    "days are in a week": ["7", "seven"], "months are in a year": ["12", "twelve"],
    "hours are in a day": ["24", "twenty-four"], "minutes are in an hour": ["60", "sixty"],
    "seconds are in a minute": ["60", "sixty"], "legs does a spider have": ["8", "eight"],
    "legs does an insect have": ["6", "six"], "sides does a triangle have": ["3", "three"],
    "sides does a square have": ["4", "four"], "centimeters are in a meter": ["100", "one hundred", "hundred"],
    "letters are in the English alphabet": ["26", "twenty-six"], "wheels does a bicycle have": ["2", "two"],
    "cents are in a dollar": ["100", "one hundred", "hundred"], "legs does a dog have": ["4", "four"],
    "years are in a century": ["100", "one hundred", "hundred"], "seasons are in a year": ["4", "four"],
    "grams are in a kilogram": ["1000", "1,000", "one thousand", "thousand"],
    "fingers does a hand have": ["5", "five"],
}  # fmt: skip
COLORED = {
    "grass": ["green"], "snow": ["white"], "a ripe banana": ["yellow"], "the clear sky by day": ["blue"],
    "blood": ["red"], "coal": ["black"], "milk": ["white"], "a lemon": ["yellow"], "a ripe tomato": ["red"],
    "chocolate": ["brown"], "a carrot": ["orange"], "an emerald": ["green"],
}  # fmt: skip
FACTS = {
    "What do bees make?": ["honey", "beeswax"],
    "What is frozen water called?": ["ice"],
    "Which planet do we live on?": ["earth"],
    "Which planet is called the Red Planet?": ["mars"],
    "Which is the largest planet of our solar system?": ["jupiter"],
    "What do cows give us to drink?": ["milk"],
    "Which gas do humans need to breathe?": ["oxygen"],
    "What is the chemical formula of water?": ["h2o", "h₂o"],
    "Which star is closest to the Earth?": ["sun"],
    "Who wrote Romeo and Juliet?": ["shakespeare"],
    "Which language is spoken in Brazil?": ["portuguese"],
    "Which animal is the largest on Earth?": ["whale"],
    "On which continent is Egypt?": ["africa"],
    "On which continent is France?": ["europe"],
    "What is the tallest mountain on Earth?": ["everest"],
    "Which organ pumps blood through the body?": ["heart"],
    "Which meal do people eat in the morning?": ["breakfast"],
    "What do plants take in through their roots?": ["water", "nutrients", "minerals"],
    "Which metal has the symbol Fe?": ["iron"],
    "Which ocean lies between Europe and America?": ["atlantic"],
    "Which currency is used in Japan?": ["yen"],
    "What is bread mainly made of?": ["flour", "wheat"],
    "Which month comes after March?": ["april"],
    "Who painted the Mona Lisa?": ["leonardo", "da vinci"],
}


def rows() -> list[Row]:
    """The suite."""
    brief = "Answer in a few words."
    groups = [
        [_asked(f"What is the capital of {land}? {brief}", [city]) for land, city in CAPITALS.items()],
        [_asked(f"What is the opposite of {word}? Answer with one word.", other) for word, other in OPPOSITES.items()],
        [_asked(f"{question} {brief}", accepted) for question, accepted in FACTS.items()],
        [_asked(f"What is the plural of {word}? Answer with one word.", [many]) for word, many in PLURALS.items()]
        + [_asked(f"What is a young {animal} called? {brief}", [young]) for animal, young in YOUNG.items()],
        [_asked(f"How many {what}? Answer with the number.", accepted) for what, accepted in COUNTS.items()]
        + [_asked(f"What color is {thing}? Answer with one word.", color) for thing, color in COLORED.items()],
    ]
    return alternating("knowledge", [shuffled(f"knowledge {number}", group) for number, group in enumerate(groups)])


def _asked(question: str, accepted: list[str]) -> Draft:
    return draft(question, verifier="contains", reference=f"{accepted[0].capitalize()}.", any_of=accepted)
