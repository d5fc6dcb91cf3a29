"""Decides which prompts are held out, and tells whether they are enough for the gates to decide.

prompt key, fraction -> side; what the gates need, the prompts that there are -> the shortages

A prompt's side depends on its hash and the fraction alone. A sweep divides the held-out prompts once more by the same
hash: those with the smallest are never seen by a trial.
"""

import hashlib
import math
from bisect import bisect_left
from dataclasses import dataclass, replace

from posttrain.config.evidence import Evidence, Need, Of, Part
from posttrain.config.requirements import NOUNS, PARTS, shortage

SALT = "posttrain-split-1"  # another salt deals all prompts out anew
DATA_SETS = {  # kinds of rows whose held-out ones are counted together
    "sft_rows": ("sft",),
    "sft_prompts": ("sft",),
    "preference_rows": ("preference",),
    "prompts": ("sft", "preference"),
}
SPAN = 2**64
MAX_PERCENT = 50  # a larger share held out is not advised: rows are


def side_of(key: str, eval_fraction: float) -> str:
    """The side to which the prompt with this key belongs."""
    return "eval" if _dealt(key) < eval_fraction * SPAN else "train"


def _dealt(key: str) -> int:
    """A number below `SPAN` that looks random and belongs to the prompt."""
    return int.from_bytes(hashlib.sha256(f"{SALT}:{key}".encode()).digest()[:8])


@dataclass(frozen=True)
class Prompts:
    """The prompts of a data set by their SHA-256."""

    held_out: list[bytes]  # of each held-out row
    different: set[bytes]  # on both sides


@dataclass(frozen=True)
class Supply:
    """How many rows of a kind there are, and what the gates need of them."""

    of: Of
    part: Part
    num_rows: int | None  # None: not known here
    needs: list[Need]
    evidence: Evidence
    num_prompts: int = 0  # of the data sets in all; 0 for the prompts of a file that a gate asks
    eval_fraction: float | None = None  # the least that holds out enough

    @property
    def num_needed(self) -> int:
        return max(need.num_rows for need in self.needs)

    @property
    def is_short(self) -> bool:
        return self.num_rows is not None and self.num_rows < self.num_needed

    @property
    def name(self) -> str:
        """`sft_prompts`, and in a sweep `unseen_sft_prompts`."""
        return self.of if self.part == "held_out" else f"{self.part}_{self.of}"

    @property
    def counted(self) -> str:
        """`24 different held-out prompts (data.eval_fraction 0.1 of 240 prompts)`."""
        if not self.num_prompts:
            return f"{self.num_rows} {NOUNS[self.of]}"
        shares = f"data.eval_fraction {self.evidence.eval_fraction:g} of {self.num_prompts} prompts"
        shares += f", unseen_fraction {self.evidence.unseen_fraction:g}" if self.part != "held_out" else ""
        return f"{self.num_rows} {NOUNS[self.of]}{PARTS[self.part]} ({shares})"

    @property
    def shortage(self) -> str:
        """Names the limits that need more rows than there are."""
        needed, _ = shortage(self.needs, self.num_rows, self.evidence.confidence)
        return needed

    @property
    def remedy(self) -> str:
        """Names the change that helps: a larger share, more rows, or other limits."""
        _, changes = shortage(self.needs, self.num_rows, self.evidence.confidence)
        return f"{self._more_rows()}; {changes}"

    def _more_rows(self) -> str:
        if not self.num_prompts:
            return f"add prompts to validation.{self.of}"
        share = f"set data.eval_fraction to {self.eval_fraction:g} or " if self.eval_fraction else ""
        if not self.num_rows:
            return f"{share}give more rows"
        wanted = math.ceil(self.num_prompts * self.num_needed / self.num_rows / 10) * 10
        return f"{share}give rows with about {wanted} different prompts"


def supplies(evidence: Evidence, data_sets: dict[str, Prompts | None], asked: dict[str, int | None]) -> list[Supply]:
    """Compares the needs of the gates with the rows that exist.

    Args:
        data_sets: by kind, those of the graph; None: not known here.
        asked: numbers of different prompts by the key of their file.
    """
    needs: dict[tuple[Of, Part], list[Need]] = {}
    for need in evidence.needs:
        needs.setdefault((need.of, need.part), []).append(need)
    return [_supply(of, part, some, evidence, data_sets, asked) for (of, part), some in needs.items()]


def _supply(
    of: Of, part: Part, needs: list[Need], evidence: Evidence, data_sets: dict[str, Prompts | None],
    asked: dict[str, int | None],
) -> Supply:  # fmt: skip
    if of not in DATA_SETS:
        return Supply(of, part, asked.get(of), needs, evidence)
    known = [data_sets[kind] for kind in DATA_SETS[of] if kind in data_sets]
    if not known or None in known:
        return Supply(of, part, None, needs, evidence)
    keys = [key for prompts in known for key in prompts.held_out if _is_in(key, part, evidence)]
    num_rows = len(keys) if of.endswith("_rows") else len(set(keys))
    different = set().union(*(prompts.different for prompts in known))
    supply = Supply(of, part, num_rows, needs, evidence, num_prompts=len(different))
    return replace(supply, eval_fraction=_fraction_for(supply, different)) if supply.is_short else supply


def _is_in(key: bytes, part: Part, evidence: Evidence) -> bool:
    """Tells whether a held-out prompt is in this part of them."""
    if part == "held_out":
        return True
    return (side_of(key.hex(), evidence.eval_fraction * evidence.unseen_fraction) == "eval") == (part == "unseen")


def _fraction_for(supply: Supply, different: set[bytes]) -> float | None:
    """The least share of these prompts, in whole percents, that holds out as many as are needed."""
    dealt = sorted(_dealt(key.hex()) for key in different)
    unseen = supply.evidence.unseen_fraction or 0.0
    for share in (percent / 100 for percent in range(1, MAX_PERCENT + 1)):
        whole, first = bisect_left(dealt, share * SPAN), bisect_left(dealt, share * unseen * SPAN)
        if {"held_out": whole, "selection": whole - first, "unseen": first}[supply.part] >= supply.num_needed:
            return share
    return None
