import json
import math

import pytest

from posttrain.step import kfp_io


def test_parameters_and_metadata_go_where_the_executor_input_says(tmp_path):
    output_file, passed = tmp_path / "deep" / "output.json", tmp_path / "params" / "passed"
    executor_input = {
        "outputs": {
            "outputFile": str(output_file),
            "parameters": {"passed": {"outputFile": str(passed)}},
            "artifacts": {"metrics": {"artifacts": [{"name": "metrics", "uri": "gs://b/metrics"}]}},
        }
    }
    metrics = {"loss": 0.5, "lost": math.nan, "missing": None, "steps": 3}
    kfp_io.write_outputs(json.dumps(executor_input), parameters={"passed": False}, metadata={"metrics": metrics})
    written = json.loads(output_file.read_text())
    assert passed.read_text() == "false"
    assert written["parameterValues"] == {"passed": False}
    assert written["artifacts"]["metrics"]["artifacts"][0] == {
        "name": "metrics",
        "uri": "gs://b/metrics",
        "metadata": {"loss": 0.5, "steps": 3},
    }


def test_a_confusion_matrix_is_what_kfp_itself_would_log(tmp_path):
    from kfp.dsl import ClassificationMetrics

    theirs = ClassificationMetrics(name="confusion", uri="gs://b/confusion")
    categories, matrix = ["answer", "decline", "incoherent"], [[8, 1, 0], [0, 5, 2], [0, 0, 0]]
    theirs.log_confusion_matrix(categories, matrix)
    artifact = {"name": "confusion", "uri": "gs://b/confusion"}
    outputs = {"outputFile": str(tmp_path / "o.json"), "artifacts": {"confusion": {"artifacts": [artifact]}}}
    metadata = {"confusion": kfp_io.confusion_matrix(categories, matrix)}
    kfp_io.write_outputs(json.dumps({"outputs": outputs}), parameters={}, metadata=metadata)
    written = json.loads((tmp_path / "o.json").read_text())
    assert written["artifacts"]["confusion"]["artifacts"][0]["metadata"] == theirs.metadata


def test_by_hand_there_is_nothing_to_write():
    kfp_io.write_outputs("{}", parameters={"passed": True}, metadata={})


def test_every_step_has_the_common_flags():
    args = kfp_io.parser("posttrain.sft", "does a thing").parse_args(["--step", "s", "--storage-root", "r"])
    assert (args.step, args.storage_root, args.config, args.overrides, args.executor_input) == (
        "s",
        "r",
        "{}",
        "{}",
        "{}",
    )


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("gs://bucket/weekly/kfp/post-training/r1/preflight/4711/notes", "gs://bucket/weekly/kfp"),
        ("minio://mlpipeline/v2/artifacts/post-training/r1/preflight/4711/notes", "minio://mlpipeline/v2/artifacts"),
        ("/tmp/artifacts/r1/preflight/notes", None),
    ],
)
def test_the_root_of_all_artifacts_is_that_of_any_of_them(uri, root):
    outputs = {"artifacts": {"notes": {"artifacts": [{"uri": uri}]}}}
    assert kfp_io.artifacts_root(json.dumps({"outputs": outputs})) == root


def test_without_artifacts_there_is_no_root():
    assert kfp_io.artifacts_root("{}") is None
