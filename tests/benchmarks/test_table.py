"""The page of figures: medians, spreads, ratios."""

from benchmarks import table

RUNS = {
    "ours": [{"seconds": 1.0, "peak_mb": 50.0}, {"seconds": 2.0, "peak_mb": 52.0}, {"seconds": 4.0, "peak_mb": 54.0}],
    "theirs": [{"seconds": 3.0}, {"seconds": 6.0}, {"seconds": 4.0}],
}


def test_each_side_is_compared_with_ours_round_by_round():
    rendered = table.render({"title": "1.5B", "ours": "ours", "runs": RUNS, "compared": "seconds"})
    assert rendered.splitlines()[2:] == ["| ours | 2 | 1 to 4 |  | 52 |", "| theirs | 4 | 3 to 6 | 3.00 |  |"]


def test_another_number_can_be_compared():
    runs = {"ours": [{"seconds": 1.0, "tokens": 1200.0}], "theirs": [{"seconds": 2.0, "tokens": 400.0}]}
    rendered = table.render({"title": "side", "ours": "theirs", "runs": runs, "compared": "tokens"})
    assert rendered.splitlines()[0] == "| side | tokens | least to most | ratio | seconds |"
    assert rendered.splitlines()[2] == "| ours | 1,200 | 1,200 to 1,200 | 3.00 | 1 |"
