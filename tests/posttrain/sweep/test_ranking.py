from posttrain.sweep.ranking import Candidate, Cost, Measure, ranked


def candidate(name, value=None, interval=None, status="qualified", cost=1.0, rung=0):
    measures = {} if value is None else {"g.m": Measure(value=value, interval=interval)}
    return Candidate(
        name=name, run_id=name, settings={}, status=status, measures=measures, objective="g.m",
        cost=Cost(cpu_seconds=cost), rung=rung,
    )  # fmt: skip


def names(rows):
    return [row.candidate.name for row in rows]


def test_sorted_by_objective_and_ties_by_cost():
    rows = [candidate("dear", 0.3, cost=9), candidate("worse", 0.4), candidate("cheap", 0.3, cost=2)]
    assert names(ranked(rows, 1)) == ["cheap", "dear", "worse"]
    assert names(ranked(rows, -1)) == ["worse", "cheap", "dear"]


def test_what_does_not_qualify_comes_last_and_has_no_place():
    failed = candidate("failed", 0.1, status="gate failed")
    left = candidate("left", 0.2, status="not promoted")
    rows = ranked([failed, candidate("lost", status="diverged"), left, candidate("good", 0.5)], 1)
    assert names(rows) == ["good", "left", "failed", "lost"]
    assert [row.place for row in rows] == [1, None, None, None]


def test_level_with_the_best_is_whose_interval_reaches_its():
    rows = [candidate("best", 0.3, (0.2, 0.4)), candidate("near", 0.5, (0.4, 0.6)), candidate("far", 0.7, (0.6, 0.8))]
    assert [row.is_level for row in ranked(rows, 1)] == [False, True, False]


def test_nothing_qualifies():
    rows = ranked([candidate("a", status="diverged"), candidate("b", 0.2, status="gate failed")], 1)
    assert [row.place for row in rows] == [None, None]
    assert not any(row.is_level for row in rows)


def test_cost_adds_up_but_for_the_peak():
    spent = Cost(cpu_seconds=2, gpu_seconds=0, peak_memory=5) + Cost(cpu_seconds=3, peak_memory=4)
    assert (spent.cpu_seconds, spent.compute_seconds, spent.peak_memory) == (5, 5, 5)
    assert Cost(cpu_seconds=2, gpu_seconds=1).compute_seconds == 1
