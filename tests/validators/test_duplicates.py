import random

import pytest

from validators import duplicates


def test_case_punctuation_and_space_do_not_count_but_order_does():
    assert duplicates.shingles("Pay  the RENT!") == duplicates.shingles("pay the rent")
    assert duplicates.shingles("Pay the rent") != duplicates.shingles("the rent pay")
    assert duplicates.shingles("Rent") == {"rent"}
    assert duplicates.shingles(" ") == frozenset()


def test_similarity_is_shared_among_all():
    assert duplicates.jaccard(frozenset("abc"), frozenset("bcd")) == 0.5
    assert duplicates.jaccard(frozenset(), frozenset()) == 1
    assert duplicates.jaccard(frozenset("a"), frozenset()) == 0


def test_every_part_must_be_alike():
    same, other = "the same long text", "Move task 5 to Friday"
    assert duplicates.near_earlier([(same, other), (same, other)], 0.9) == {1: 0}
    assert duplicates.near_earlier([(same, other), (same, "Move task 6 to Friday")], 0.9) == {}


def test_a_text_is_near_an_earlier_one_that_stays():
    long = " ".join(f"word{number}" for number in range(30))
    texts = [(text,) for text in (long, "short", f"{long} more", "Short!", f"and {long}")]
    assert duplicates.near_earlier(texts, 0.9) == {2: 0, 3: 1, 4: 0}


def test_a_text_that_is_near_one_of_others():
    long = " ".join(f"word{number}" for number in range(30))
    assert duplicates.near_others(["a b", f"{long} more"], ["c d", long], 0.9) == {1: 1}


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.9])
def test_hashing_finds_what_comparing_everything_finds(similarity, monkeypatch):
    rng = random.Random(0)
    texts = []
    for _ in range(120):
        words = [f"word{rng.randrange(500)}" for _ in range(rng.randrange(3, 60))]
        for _ in range(rng.choice((1, 1, 2))):
            texts.append(" ".join(words))
            words.insert(rng.randrange(len(words)), "more")
    texts += ["", ""]
    parts = [(text, "a system text") for text in texts]
    compared = duplicates.near_earlier(parts, similarity), duplicates.near_others(texts[:80], texts[80:], similarity)
    monkeypatch.setattr(duplicates, "MAX_COMPARED", 0)
    hashed = duplicates.near_earlier(parts, similarity), duplicates.near_others(texts[:80], texts[80:], similarity)
    assert hashed == compared
    assert len(compared[0]) > 10


@pytest.mark.parametrize("similarity", [0.01, 0.4, 0.5, 0.9, 0.95, 0.99, 0.9999])
def test_hashing_proposes_nearly_all_pairs_at_the_limit(similarity):
    def proposed(num_rows: int) -> float:
        return 1 - (1 - similarity**num_rows) ** (128 // num_rows)

    longest = max((num_rows for num_rows in range(2, 128) if proposed(num_rows) >= 0.999), default=1)
    assert duplicates.bands(similarity) == (128 // longest, longest)


@pytest.mark.parametrize("num_words", [10, 30])
def test_texts_at_the_limit_are_alike_whichever_is_longer(num_words):
    """Of `num_words` pairs of words, the shorter one has all but one."""
    longer = " ".join(f"word{number}" for number in range(num_words + 1))
    texts = [(longer,), (longer.rpartition(" ")[0],)]
    limit = (num_words - 1) / num_words
    assert duplicates.near_earlier(texts, limit) == duplicates.near_earlier(texts[::-1], limit) == {1: 0}
    assert duplicates.near_earlier(texts, limit + 1e-9) == duplicates.near_earlier(texts[::-1], limit + 1e-9) == {}


def test_few_texts_are_compared_without_hashing(monkeypatch):
    def refuse(*_):
        raise AssertionError("hashed")

    monkeypatch.setattr(duplicates, "MAX_COMPARED", 3)
    monkeypatch.setattr(duplicates, "MinHash", refuse)
    texts = [("a b",), ("c d",), ("a b",), ("e f",)]
    assert duplicates.near_earlier(texts[:3], 0.9) == {2: 0}
    with pytest.raises(AssertionError, match="hashed"):
        duplicates.near_earlier(texts, 0.9)


def test_bands_that_no_other_text_has_propose_nothing():
    import numpy

    hashes = [numpy.array(one, numpy.uint32) for one in ([1, 2], [3, 2], [1, 4], [2, 1])]
    assert [*duplicates._shared_bands(hashes)] == [[1, 2], [2], [1], []]


def test_hashes_of_one_text_differ_from_those_of_another():
    hashing = duplicates.MinHash(0.9)
    assert (hashing.factors % 2 == 1).all()  # an even factor permutes nothing
    bands = [band for at in range(50) for band in hashing((f"word{at} more{at} of{at} these{at}",)).tolist()]
    assert len(set(bands)) == len(bands) == 50 * hashing.num_bands


def test_what_most_texts_hold_says_nothing_of_one():
    template = " ".join(f"word{number}" for number in range(60))
    asked = [f"{template} {name}" for name in ("pay the rent", "call the bank")]
    others = [f"{template} {number} {number + 1}" for number in range(20)]
    assert duplicates.near_others(asked, others, 0.9) == {}
    assert duplicates.near_others(asked, [*others, asked[1]], 0.9) == {1: 20}
    assert duplicates.near_others(asked, others[:3], 0.9) == {0: 0, 1: 0}


def test_a_template_is_seen_in_a_part_of_many_texts():
    texts = [f"please tell me {number}" for number in range(3_001)]
    assert duplicates.template_of(texts) == {"please tell", "tell me"}
    assert duplicates.template_of(texts[:10]) == duplicates.template_of(texts[:19]) == frozenset()
    assert duplicates.template_of(texts[:12], texts[12:20]) == {"please tell", "tell me"}


def test_what_half_of_the_texts_hold_is_no_template():
    texts = [f"please tell me {number}" for number in range(10)] + [f"show {number}" for number in range(10)]
    assert duplicates.template_of(texts) == frozenset()
    assert duplicates.template_of([*texts, "please tell 1"]) == {"please tell"}
