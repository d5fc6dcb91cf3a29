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


@pytest.mark.parametrize("similarity", [0.01, 0.5, 0.9, 0.95, 0.99])
def test_hashing_proposes_nearly_all_pairs_at_the_limit(similarity):
    num_bands, num_rows = duplicates.bands(similarity)
    assert num_bands * num_rows <= duplicates.NUM_HASHES
    assert num_rows == 1 or 1 - (1 - similarity**num_rows) ** num_bands >= duplicates.RECALL


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
