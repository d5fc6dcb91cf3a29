"""Finds near-duplicate texts, by the Jaccard similarity of their word bigrams.

texts, similarity -> index of each near-duplicate -> index of the text that it nearly repeats

A text has parts, and two texts are near-duplicates only if all of their parts are: two short questions do not become
one because they share a long system prompt. With few texts, every pair is compared. With many, MinHash with
locality-sensitive hashing (A. Z. Broder 1997) proposes pairs, and each proposed pair is compared exactly. The texts may
be read anew on every pass: memory holds about 100 bytes of each, and the text itself only where others resemble it.
Implemented here because the library for it depends on scipy, which would make this gate's image a quarter larger.
"""

import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING

from posttrain.rows.skeleton import skeleton

if TYPE_CHECKING:
    import numpy

Text = tuple[str, ...]  # its parts
Shingles = frozenset[str]

MAX_COMPARED = 500  # texts up to which every two are compared
NUM_HASHES = 128  # of a MinHash
SEED = 0  # makes the pairs reproducible
RECALL = 0.999  # share of the pairs at the limit that hashing proposes; above the limit it is higher
TEMPLATE_TEXTS = (20, 1_000)  # with fewer no template shows; more need not be counted


@lru_cache(maxsize=4 * MAX_COMPARED)
def shingles(text: str) -> Shingles:
    """Pairs of neighbouring words of the text's skeleton, so that word order counts; a single word by itself."""
    words = skeleton(text).split()
    return frozenset(f"{first} {second}" for first, second in zip(words, words[1:], strict=False)) or frozenset(words)


def jaccard(ours: Shingles, theirs: Shingles) -> float:
    """Shared shingles divided by all shingles of both; 1 if neither has any."""
    shared = len(ours & theirs)
    total = len(ours) + len(theirs) - shared
    return shared / total if total else 1.0


def near_earlier(texts: Collection[Text], similarity: float) -> dict[int, int]:
    """Index of each text that nearly repeats an earlier one that is kept -> that one's index. All others are kept."""
    near_of, kept, kept_by_key = {}, {}, defaultdict(list)
    for number, (text, keys) in enumerate(zip(texts, _keys(similarity, texts), strict=True)):
        parts = _parts(text)
        proposed = sorted({earlier for key in keys for earlier in kept_by_key[key]})
        near = next((earlier for earlier in proposed if _near(parts, _parts(kept[earlier]), similarity)), None)
        if near is not None:
            near_of[number] = near
        elif keys:  # a text without keys resembles none, and would only fill the memory
            kept[number] = text
            for key in keys:
                kept_by_key[key].append(number)
    return near_of


def near_others(texts: list[str], others: Collection[str], similarity: float) -> dict[int, int]:
    """Index of each text that nearly repeats one of `others` -> the first one's index. Words that most texts share, a
    template, do not count.

    Keeps only the hashes of `others`, of which there may be many times as many.
    """
    ignored = template_of(texts, others)
    near_of, keys, holders = {}, _keys(similarity, *map(_Single, (texts, others)), ignored=ignored), defaultdict(list)
    for number, its in zip(range(len(texts)), keys, strict=False):
        for key in its:
            holders[key].append(number)
    for other, (text, its) in enumerate(zip(others, keys, strict=True)):
        proposed = {number for key in its for number in holders.get(key, ())} - near_of.keys()
        parts = _parts((text,), ignored)
        for number in proposed:
            if _near(_parts((texts[number],), ignored), parts, similarity):
                near_of[number] = other
    return dict(sorted(near_of.items()))


def template_of(*some: Collection[str]) -> Shingles:
    """Shingles that more than half of the texts contain: they do not distinguish one text from another."""
    fewest, most = TEMPLATE_TEXTS
    num_texts = sum(map(len, some))
    if num_texts < fewest:
        return frozenset()
    counted, counts = 0, Counter()
    for text in islice(chain(*some), 0, None, -(-num_texts // most)):
        counted += 1
        counts.update(shingles(text))
    return frozenset(shingle for shingle, count in counts.items() if count > counted / 2)


@dataclass(frozen=True)
class _Single:
    """Texts of one part."""

    texts: Collection[str]

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[Text]:
        return ((text,) for text in self.texts)


def _keys(similarity: float, *some: Collection[Text], ignored: Shingles = frozenset()) -> Iterator[list[int]]:
    """Keys of each text; texts that share one are compared. Few texts all share one; of many, a key is a band."""
    num_texts = sum(map(len, some))
    if num_texts <= MAX_COMPARED:
        return repeat([0], num_texts)
    return _shared_bands(map(MinHash(similarity, ignored), chain(*some)))


def _shared_bands(hashes: Iterable["numpy.ndarray"]) -> Iterator[list[int]]:
    """Bands of each text that another text has too; the others propose nothing."""
    import numpy

    all_bands = array("I")
    for one in hashes:
        all_bands.frombytes(one.tobytes())
        num_bands = len(one)
    bands_of = numpy.frombuffer(all_bands, numpy.uint32).reshape(len(all_bands) // num_bands, num_bands)
    shared = numpy.empty(bands_of.shape, bool)
    for band in range(num_bands):
        _, places, counts = numpy.unique(bands_of[:, band], return_inverse=True, return_counts=True)
        shared[:, band] = counts[places] > 1
    return (its[those].tolist() for its, those in zip(bands_of, shared, strict=True))


class MinHash:
    """Computes the hashes of a text's bands; texts that share one may be alike."""

    def __init__(self, similarity: float, ignored: Shingles = frozenset()):
        import numpy

        self.ignored = ignored
        self.num_bands, self.num_rows = bands(similarity)
        random = numpy.random.default_rng(SEED)
        # (hash ^ mask) * odd number, modulo 2^64, is a different permutation of all hashes for each of the NUM_HASHES
        self.masks, odd = random.integers(1 << 64, size=(2, NUM_HASHES), dtype=numpy.uint64)
        self.factors = odd | numpy.uint64(1)

    def __call__(self, text: Text) -> "numpy.ndarray":
        """Hashes the bands of all parts together: if every part is similar enough, so is the whole."""
        import numpy

        words = [f"{number} {one}" for number, part in enumerate(_parts(text, self.ignored)) for one in part] or [""]
        hashes = numpy.frombuffer(b"".join(map(_hash, words)), numpy.uint64)
        least = ((hashes[:, None] ^ self.masks) * self.factors).min(axis=0)[: self.num_bands * self.num_rows]
        # Each position has its own factor, so that equal hashes in different bands differ.
        mixed = (least * self.factors[: least.size]).reshape(self.num_bands, self.num_rows).sum(axis=1)
        return (mixed >> numpy.uint64(32)).astype(numpy.uint32)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _parts(text: Text, ignored: Shingles = frozenset()) -> tuple[Shingles, ...]:
    return tuple(shingles(part) - ignored if ignored else shingles(part) for part in text)


def _near(ours: tuple[Shingles, ...], theirs: tuple[Shingles, ...], similarity: float) -> bool:
    """Tells whether every part is at least this similar."""
    for one, other in zip(ours, theirs, strict=True):
        num_ours, num_theirs = len(one), len(other)
        if num_ours < similarity * num_theirs or num_theirs < similarity * num_ours:  # avoids most comparisons
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
