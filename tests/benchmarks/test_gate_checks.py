"""The benchmark of a gate's checks runs, and says the same on the terminal and in its file."""

import json

from benchmarks import gate_checks


def test_it_measures_all_ways_and_writes_every_round(tmp_path, capsys):
    file = tmp_path / "rounds.json"
    gate_checks.main(f"--checks 3 --work 0.01 --sleep 0.1 --rounds 2 --output {file}".split())
    (table,), out = json.loads(file.read_text())["tables"], capsys.readouterr().out
    assert table["runs"].keys() == gate_checks.WAYS.keys()
    for way, runs in table["runs"].items():
        assert len(runs) == 2
        assert all(0.1 <= run["seconds"] < 10 for run in runs)
        assert f"| {way} |" in out
