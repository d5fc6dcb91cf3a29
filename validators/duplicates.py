"""Finds texts that are nearly the same: the Jaccard similarity of the pairs of words that follow each other.

texts, similarity -> for each text that is nearly an earlier one, or nearly one of others, which one that is

A text has parts, and two texts are nearly the same only if each of their parts is: two short questions do not become
one because they share a long system text. Among a few texts every two are compared. Among many, MinHash with
locality-sensitive hashing (A. Z. Broder 1997) proposes the pairs; each is compared then, so that no estimate decides.
Written out here: the library for it brings scipy, which would make the image of this gate a quarter larger.
"""

import hashlib
from collections import Counter, defaultdict
from functools import lru_cache
from typing import Protocol

from posttrain.rows import normalise

Text = tuple[str, ...]  # its parts
Shingles = frozenset[str]

MAX_COMPARED = 500  # texts up to which every two are compared
NUM_HASHES = 128  # of a MinHash
SEED = 0  # the same texts give the same pairs
RECALL = 0.999  # share of the pairs at the limit that hashing must propose; of those above it more
TEMPLATE_TEXTS = (20, 1_000)  # fewer show no template, and more need not be counted


@lru_cache(maxsize=4 * MAX_COMPARED)
def shingles(text: str) -> Shingles:
    """Pairs of neighbouring words of the normalised text, so that word order counts; of a single word that word."""
    words = normalise(text).split()
    return frozenset(f"{first} {second}" for first, second in zip(words, words[1:], strict=False)) or frozenset(words)


def jaccard(ours: Shingles, theirs: Shingles) -> float:
    """Shared shingles among all of both; 1 where neither has any."""
    shared = len(ours & theirs)
    total = len(ours) + len(theirs) - shared
    return shared / total if total else 1.0


def near_earlier(texts: list[Text], similarity: float) -> dict[int, int]:
    """Index of each text that is nearly an earlier one which stays -> that one's index. The others would stay."""
    index, found = _index(len(texts), similarity, frozenset()), {}
    for number, text in enumerate(texts):
        earlier = index.find(text)
        if earlier is None:
            index.add(number, text)
        else:
            found[number] = earlier
    return found


def near_others(texts: list[str], others: list[str], similarity: float) -> dict[int, int]:
    """Index of each text that is nearly one of `others` -> that one's index. What all share does not count."""
    index = _index(len(texts) + len(others), similarity, template_of(texts + others))
    for number, text in enumerate(others):
        index.add(number, (text,))
    found = {number: index.find((text,)) for number, text in enumerate(texts)}
    return {number: other for number, other in found.items() if other is not None}


def template_of(texts: list[str]) -> Shingles:
    """What more than half of the texts hold: it says nothing of any one of them."""
    fewest, most = TEMPLATE_TEXTS
    if len(texts) < fewest:
        return frozenset()
    counted = texts[:: -(-len(texts) // most)]
    counts = Counter(shingle for text in counted for shingle in shingles(text))
    return frozenset(shingle for shingle, count in counts.items() if count > len(counted) / 2)


class _Index(Protocol):
    def add(self, key: int, text: Text) -> None: ...

    def find(self, text: Text) -> int | None:
        """The first key whose text is near."""


class _Everything:
    """Compares with every text."""

    def __init__(self, similarity: float, ignored: Shingles):
        self.similarity, self.ignored = similarity, ignored
        self.parts: dict[int, tuple[Shingles, ...]] = {}

    def add(self, key: int, text: Text) -> None:
        self.parts[key] = _parts(text, self.ignored)

    def find(self, text: Text) -> int | None:
        parts = _parts(text, self.ignored)
        return next((key for key, others in self.parts.items() if _near(parts, others, self.similarity)), None)


class _Hashed:
    """Compares with the texts whose hashes agree in one band at least."""

    def __init__(self, similarity: float, ignored: Shingles):
        import numpy

        self.similarity, self.ignored = similarity, ignored
        self.num_bands, self.num_rows = bands(similarity)
        random = numpy.random.default_rng(SEED)
        # (hash ^ mask) * odd number, modulo 2^64: another permutation of all hashes for each of the NUM_HASHES
        self.masks, odd = random.integers(1 << 64, size=(2, NUM_HASHES), dtype=numpy.uint64)
        self.factors = odd | numpy.uint64(1)
        self.keys: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)  # of texts, by band and hashes
        self.texts: dict[int, Text] = {}  # their shingles would fill the memory

    def add(self, key: int, text: Text) -> None:
        self.texts[key] = text
        for band in self._bands(_parts(text, self.ignored)):
            self.keys[band].append(key)

    def find(self, text: Text) -> int | None:
        parts = _parts(text, self.ignored)
        proposed = sorted({key for band in self._bands(parts) for key in self.keys.get(band, ())})
        near = (key for key in proposed if _near(parts, _parts(self.texts[key], self.ignored), self.similarity))
        return next(near, None)

    def _bands(self, parts: tuple[Shingles, ...]) -> list[tuple[int, bytes]]:
        """Of all parts together: where each part is so similar, all of them together are."""
        import numpy

        words = [f"{number} {one}" for number, part in enumerate(parts) for one in part] or [""]
        hashes = numpy.frombuffer(b"".join(map(_hash, words)), numpy.uint64)
        least = ((hashes[:, None] ^ self.masks) * self.factors).min(axis=0)
        starts = range(0, self.num_bands * self.num_rows, self.num_rows)
        return [(start, least[start : start + self.num_rows].tobytes()) for start in starts]


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _index(num_texts: int, similarity: float, ignored: Shingles) -> _Index:
    return (_Everything if num_texts <= MAX_COMPARED else _Hashed)(similarity, ignored)


def _parts(text: Text, ignored: Shingles) -> tuple[Shingles, ...]:
    return tuple(shingles(part) - ignored if ignored else shingles(part) for part in text)


def _near(ours: tuple[Shingles, ...], theirs: tuple[Shingles, ...], similarity: float) -> bool:
    """Whether each part of both is at least so similar."""
    for one, other in zip(ours, theirs, strict=True):
        num_ours, num_theirs = len(one), len(other)
        if num_ours < similarity * num_theirs or num_theirs < similarity * num_ours:  # spares most comparisons
            return False
        if jaccard(one, other) < similarity:
            return False
    return True


def bands(similarity: float) -> tuple[int, int]:
    """Number of bands and hashes in each: the longest bands that still propose `RECALL` of the pairs at the limit."""
    for rows in range(NUM_HASHES // 2, 1, -1):
        if 1 - (1 - similarity**rows) ** (NUM_HASHES // rows) >= RECALL:
            return NUM_HASHES // rows, rows
    return NUM_HASHES, 1
