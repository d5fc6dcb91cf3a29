from pathlib import Path

import pytest
import yaml

import compile as command
from components import container


def test_writes_the_graph_and_finds_it_up_to_date(tmp_path, capsys):
    output = str(tmp_path / "graph.yaml")
    assert command.main(["--output", output]) == 0
    assert command.main(["--output", output, "--check"]) == 0
    assert "is up to date" in capsys.readouterr().out


def test_a_cluster_lies_on_top_of_the_pipelines_configuration(tmp_path):
    output = tmp_path / "graph.yaml"
    files = ["configs/pipeline_config.yaml", "configs/clusters/gke-l4-spot.yaml"]
    assert command.main(["--config", *files, "--output", str(output)]) == 0
    assert "cloud.google.com/gke-spot" in output.read_text()
    assert "cloud.google.com/gke-spot" not in Path("post_training.yaml").read_text()


def test_a_stale_or_missing_graph_fails_the_check(tmp_path, capsys):
    output = tmp_path / "graph.yaml"
    assert command.main(["--output", str(output), "--check"]) == 1
    assert not output.exists()
    command.main(["--output", str(output)])
    assert command.main(["--output", str(output), "--check", "--set", "validation.max_loss=1.5"]) == 1
    assert "is stale" in capsys.readouterr().err


def test_limits_that_no_data_could_decide_are_refused(tmp_path, capsys):
    output = tmp_path / "graph.yaml"
    assert command.main(["--output", str(output), "--set", "validation.num_generated_answers=16"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: validation.num_generated_answers = 16 is too few: at confidence 0.95, ")
    assert not output.exists()


def test_says_how_many_rows_the_limits_need(tmp_path, capsys):
    output = str(tmp_path / "graph.yaml")
    assert command.main(["--output", output]) == 0
    summary = capsys.readouterr().out
    assert "  35 different held-out SFT prompts  min_format_valid_rate 0.9" in summary
    assert command.main(["--output", output, "--limits"]) == 0
    table = capsys.readouterr().out
    assert "min_merge_agreement" in table and "min_merge_agreement" not in summary
    assert command.main(["--sweep-output", output]) == 0
    assert "A sweep needs about 70 held-out prompts" in capsys.readouterr().out


@pytest.mark.parametrize(
    "setting", ["validation.max_los=1", "validation.judge=null", "stages.sft.config_path=gone.yaml"]
)
def test_bad_configuration_is_one_line_and_exit_1(tmp_path, capsys, setting):
    output = tmp_path / "graph.yaml"
    assert command.main(["--output", str(output), "--set", setting]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not output.exists()


def test_a_graph_with_local_images_is_written_and_says_where_it_runs(tmp_path, capsys):
    output = str(tmp_path / "graph.yaml")
    assert command.main(["--output", output]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{output} runs on this machine only: images/digests.yaml has no digest for ")
    assert (
        "posttrain-cpu:local and posttrain-train:local; push the images and compile again, or give --allow-tags" in line
    )


def test_allow_tags_silences_the_warning(tmp_path, capsys):
    assert command.main(["--output", str(tmp_path / "graph.yaml"), "--allow-tags"]) == 0
    assert capsys.readouterr().err == ""


def test_a_graph_that_breaks_a_rule_is_not_written(tmp_path, capsys):
    output = tmp_path / "graph.yaml"
    assert command.main(["--output", str(output), "--set", "sft_dataset=gs://b/{{run}}.jsonl"]) == 1
    head, finding = capsys.readouterr().err.splitlines()
    assert head.startswith(f"error: {output} breaks rules of the platform")
    assert finding.strip().startswith("expanded_value: run parameter sft_dataset: 'gs://b/{{run}}.jsonl'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", ["", "gone/graph.yaml", "graph.yaml/x"])
def test_an_output_that_cannot_be_written_is_one_line(tmp_path, capsys, output):
    (tmp_path / "graph.yaml").touch()
    assert command.main(["--output", str(tmp_path / output)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / output}: cannot be written, ")


def test_a_full_disk_is_named_with_the_output(capsys):
    assert command.main(["--output", "/dev/full"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: /dev/full: cannot be written, No space left on device: give another output file"


@pytest.mark.parametrize(
    "digest", ["sha256:12", "0a" * 32, f"sha256:{'0A' * 32}", f"sha256:{'0a' * 32}\n", "latest", 12]
)
def test_a_digest_that_no_registry_gives_is_one_error(tmp_path, capsys, monkeypatch, digest):
    images = {name: {"repository": name, "digest": None} for name in ("cpu", "train")}
    images["train"]["digest"] = digest
    (tmp_path / "digests.yaml").write_text(yaml.safe_dump(images))
    monkeypatch.setattr(container, "IMAGES", tmp_path / "digests.yaml")
    assert command.main(["--output", str(tmp_path / "graph.yaml")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: images/digests.yaml: train.digest {digest!r} is not sha256: and 64 hex digits; ")
    assert not (tmp_path / "graph.yaml").exists()


def test_images_that_were_pushed_are_taken_by_their_digest(tmp_path, capsys, monkeypatch):
    images = {name: {"repository": f"r/{name}", "digest": f"sha256:{'0a' * 32}"} for name in ("cpu", "train")}
    (tmp_path / "digests.yaml").write_text(yaml.safe_dump(images))
    monkeypatch.setattr(container, "IMAGES", tmp_path / "digests.yaml")
    assert container.image_reference("cpu") == f"r/cpu@sha256:{'0a' * 32}"
    assert command.main(["--output", str(tmp_path / "graph.yaml")]) == 0
    assert capsys.readouterr().err == ""
