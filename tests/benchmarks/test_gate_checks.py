"""The benchmark of a gate's checks runs, and says the same on the terminal and in its file."""

import json

from benchmarks import gate_checks


def test_it_measures_all_ways_and_writes_every_round(tmp_path, capsys):
    file = tmp_path / "rounds.json"
    gate_checks.main(f"--checks 3 --work 0.01 --sleep 0.1 --rounds 2 --output {file}".split())
    report, out = json.loads(file.read_text()), capsys.readouterr().out
    assert report["seconds"].keys() == gate_checks.WAYS.keys()
    for row in report["rows"]:
        assert len(report["seconds"][row["what"]]) == 2
        assert 0.1 <= row["fastest"] <= row["median_seconds"] <= row["slowest"]
        assert f"{row['median_seconds']}" in out
    assert report["rows"][0]["times_side_by_side"] == 1
