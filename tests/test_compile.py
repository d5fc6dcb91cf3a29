import pytest

import compile as command


def test_writes_the_graph_and_finds_it_up_to_date(tmp_path, capsys):
    output = str(tmp_path / "graph.yaml")
    assert command.main(["--output", output]) == 0
    assert command.main(["--output", output, "--check"]) == 0
    assert "is up to date" in capsys.readouterr().out


def test_a_stale_or_missing_graph_fails_the_check(tmp_path, capsys):
    output = tmp_path / "graph.yaml"
    assert command.main(["--output", str(output), "--check"]) == 1
    assert not output.exists()
    command.main(["--output", str(output)])
    assert command.main(["--output", str(output), "--check", "--set", "validation.max_loss=1.5"]) == 1
    assert "is stale" in capsys.readouterr().err


@pytest.mark.parametrize(
    "setting", ["validation.max_los=1", "validation.judge=null", "stages.sft.config_path=gone.yaml"]
)
def test_bad_configuration_is_one_line_and_exit_1(tmp_path, capsys, setting):
    output = tmp_path / "graph.yaml"
    assert command.main(["--output", str(output), "--set", setting]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not output.exists()
