"""Tool calls: functions are offered, one request is answered with a call, and the next one is asked."""

import json
import random
from functools import partial

from validators.skills.generators.draft import CITIES, COLORS, DAYS, NAMES, Draft, draft, generated
from validators.skills.suites import Row

SONGS = ("Yesterday", "Imagine", "Hello", "Thriller", "Waterloo", "Africa", "Hotel California", "Let It Be")
ROOMS = ("kitchen", "bedroom", "office", "garage", "hall", "bathroom", "cellar", "living room")
THINGS = ("milk", "bread", "eggs", "rice", "butter", "cheese", "apples", "sugar", "coffee", "salt")
WORDS = ("house", "river", "bread", "winter", "friend", "garden", "window", "morning")

# function: (argument, what may be given, ways to ask for it)
FUNCTIONS = {
    "get_weather": ("city", CITIES, ("What is the weather in {}?", "Tell me the weather in {}.")),
    "play_song": ("title", SONGS, ("Play {}.", "Please play the song {}.")),
    "turn_on_light": ("room", ROOMS, ("Turn on the light in the {}.", "Switch the {} light on.")),
    "call_contact": ("name", NAMES, ("Call {}.", "Please phone {}.")),
    "add_to_list": ("item", THINGS, ("Put {} on my shopping list.", "Add {} to the list.")),
    "set_color": ("color", COLORS, ("Make the lamp {}.", "Set the color to {}.")),
    "show_calendar": ("day", DAYS, ("Show my calendar for {}.", "What do I have on {}?", "Is there anything on {}?")),
    "translate": ("word", WORDS, ("Translate the word {}.", "What is the French word for {}?")),
}


def rows() -> list[Row]:
    """The suite: two rows of three want the function that was called before, with another argument."""
    return generated("tool_calls", [partial(kind, wanted=name) for name in FUNCTIONS for kind in (again, other, again)])


def again(rng: random.Random, wanted: str) -> Draft:
    """A request that needs the function called before once more."""
    unused = rng.choice([name for name in FUNCTIONS if name != wanted])
    return _asked(rng, wanted, shown=wanted, offered=[wanted, unused])


def other(rng: random.Random, wanted: str) -> Draft:
    """A request that needs a function that was offered and not called before."""
    shown = rng.choice([name for name in FUNCTIONS if name != wanted])
    return _asked(rng, wanted, shown=shown, offered=[wanted, shown])


def _asked(rng: random.Random, wanted: str, *, shown: str, offered: list[str]) -> Draft:
    """The functions, one request with its call, and the request to answer."""
    signatures = "\n".join(f"{name}({FUNCTIONS[name][0]})" for name in rng.sample(offered, len(offered)))
    instruction = f"You can call these functions:\n{signatures}\nAnswer each request with one call as JSON."
    (request, reference), (first, call) = _request(rng, wanted), _request(rng, shown)
    if call == reference:
        return _asked(rng, wanted, shown=shown, offered=offered)
    return draft(
        f"{instruction}\n\n{first}", call, request,
        verifier="tool_call", reference=reference, name=wanted, arguments=json.loads(reference)["arguments"],
    )  # fmt: skip


def _request(rng: random.Random, name: str) -> tuple[str, str]:
    argument, values, ways = FUNCTIONS[name]
    value = rng.choice(values)
    return rng.choice(ways).format(value), json.dumps({"name": name, "arguments": {argument: value}})
