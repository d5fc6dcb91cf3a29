"""Finds texts that are nearly the same: the Jaccard similarity of the pairs of words that follow each other.

texts, similarity -> for each text that is nearly an earlier one, or nearly one of others, which one that is

A text has parts, and two texts are nearly the same only if each of their parts is: two short questions do not become
one because they share a long system text. Among a few texts every two are compared. Among many, MinHash with
locality-sensitive hashing (A. Z. Broder 1997) proposes the pairs; each is compared then, so that no estimate decides.
Then the texts may be read anew as often as one goes through them: the memory holds 100 bytes of each, and of those that
others resemble the text.
Written out here: the library for it brings scipy, which would make the image of this gate a quarter larger.
"""

import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING

from posttrain.rows.formats import normalise

if TYPE_CHECKING:
    import numpy

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


def near_earlier(texts: Collection[Text], similarity: float) -> dict[int, int]:
    """Index of each text that is nearly an earlier one which stays -> that one's index. The others would stay."""
    found, kept, staying = {}, {}, defaultdict(list)
    for number, (text, keys) in enumerate(zip(texts, _keys(similarity, texts), strict=True)):
        parts = _parts(text)
        proposed = sorted({earlier for key in keys for earlier in staying[key]})
        near = next((earlier for earlier in proposed if _near(parts, _parts(kept[earlier]), similarity)), None)
        if near is not None:
            found[number] = near
        elif keys:  # its shingles would fill the memory
            kept[number] = text
            for key in keys:
                staying[key].append(number)
    return found


def near_others(texts: list[str], others: Collection[str], similarity: float) -> dict[int, int]:
    """Index of each text that is nearly one of `others` -> the first one's index. What all share does not count.

    Only the hashes of `others` are held: there may be many times as many of them.
    """
    ignored = template_of(texts, others)
    found, keys, holders = {}, _keys(similarity, *map(_Single, (texts, others)), ignored=ignored), defaultdict(list)
    for number, its in zip(range(len(texts)), keys, strict=False):
        for key in its:
            holders[key].append(number)
    for other, (text, its) in enumerate(zip(others, keys, strict=True)):
        proposed = {number for key in its for number in holders.get(key, ())} - found.keys()
        parts = _parts((text,), ignored)
        for number in proposed:
            if _near(_parts((texts[number],), ignored), parts, similarity):
                found[number] = other
    return dict(sorted(found.items()))


def template_of(*some: Collection[str]) -> Shingles:
    """What more than half of the texts hold: it says nothing of any one of them."""
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
    """For each text the keys of those it is to be compared with: all, among a few; else those that share a band."""
    num_texts = sum(map(len, some))
    if num_texts <= MAX_COMPARED:
        return repeat([0], num_texts)
    return _shared_bands(map(MinHash(similarity, ignored), chain(*some)))


def _shared_bands(hashes: Iterable["numpy.ndarray"]) -> Iterator[list[int]]:
    """For each text those of its bands that another text has too: the others propose nothing."""
    import numpy

    held = array("I")
    for one in hashes:
        held.frombytes(one.tobytes())
        num_bands = len(one)
    bands_of = numpy.frombuffer(held, numpy.uint32).reshape(-1, num_bands)
    shared = numpy.empty(bands_of.shape, bool)
    for band in range(num_bands):
        _, places, counts = numpy.unique(bands_of[:, band], return_inverse=True, return_counts=True)
        shared[:, band] = counts[places] > 1
    return (its[those].tolist() for its, those in zip(bands_of, shared, strict=True))


class MinHash:
    """Hashes of a text's bands: texts that share one may be alike."""

    def __init__(self, similarity: float, ignored: Shingles = frozenset()):
        import numpy

        self.ignored = ignored
        self.num_bands, self.num_rows = bands(similarity)
        random = numpy.random.default_rng(SEED)
        # (hash ^ mask) * odd number, modulo 2^64: another permutation of all hashes for each of the NUM_HASHES
        self.masks, odd = random.integers(1 << 64, size=(2, NUM_HASHES), dtype=numpy.uint64)
        self.factors = odd | numpy.uint64(1)

    def __call__(self, text: Text) -> "numpy.ndarray":
        """Of all parts together: where each part is so similar, all of them together are."""
        import numpy

        words = [f"{number} {one}" for number, part in enumerate(_parts(text, self.ignored)) for one in part] or [""]
        hashes = numpy.frombuffer(b"".join(map(_hash, words)), numpy.uint64)
        least = ((hashes[:, None] ^ self.masks) * self.factors).min(axis=0)[: self.num_bands * self.num_rows]
        # By the factors of its places, other in each band: a band is told from every other.
        mixed = (least * self.factors[: least.size]).reshape(self.num_bands, self.num_rows).sum(axis=1)
        return (mixed >> numpy.uint64(32)).astype(numpy.uint32)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _parts(text: Text, ignored: Shingles = frozenset()) -> tuple[Shingles, ...]:
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
