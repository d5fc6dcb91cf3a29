import json
import math

from posttrain import kfp_io


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


def test_by_hand_there_is_nothing_to_write():
    kfp_io.write_outputs("{}", parameters={"passed": True}, metadata={})


def test_every_step_has_the_common_flags():
    args = kfp_io.parser("does a thing").parse_args(["--step", "s", "--storage-root", "r"])
    assert (args.step, args.storage_root, args.config, args.overrides, args.executor_input) == (
        "s",
        "r",
        "{}",
        "{}",
        "{}",
    )
