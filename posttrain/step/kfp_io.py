"""Kubeflow's own files: the executor input that `'{{$}}'` passes in, output parameters, metadata and metrics.

No other module knows them. The launcher reads output parameters from the paths in the executor input, and everything
else from the JSON at `outputs.outputFile`; an unknown field, a null, NaN or infinity in it fails the task.
"""

import argparse
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

from posttrain import storage
from posttrain.config.parse import json_object
from posttrain.step import settings

MOUNTED = re.compile(r"^(\w+)://")  # the launcher's path for an address is `/gcs/...`, `/s3/...` and so on
CONFUSION_MATRIX = "confusionMatrix"  # where the UI looks for it in an artifact's metadata


class StepParser(argparse.ArgumentParser):
    """Parses the command line of a step. Its settings are those of the executor input, unless there is a `--config`,
    or the file to which these refer.
    """

    def parse_known_args(self, *args, **kwargs) -> tuple[argparse.Namespace, list[str]]:
        parsed, others = super().parse_known_args(*args, **kwargs)
        if parsed.config is None:
            inputs = json_object(parsed.executor_input, "--executor-input").get("inputs", {})
            parsed.config = json.dumps(inputs.get("parameterValues", {}).get("config", {}))
        parsed.config = settings.resolved(parsed.config, parsed.storage_root)
        return parsed, others


def parser(module: str, description: str | None = None) -> argparse.ArgumentParser:
    """Returns an argument parser with the flags that every step has.

    Args:
        module: name of the step's module, `__spec__.name`; the parsed arguments have it too.
    """
    result = StepParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.set_defaults(module=module)
    result.add_argument("--step", required=True, help="name of the step in the graph")
    result.add_argument(
        "--storage-root", required=True, help="gs://, s3:// or folder that keeps records and checkpoints"
    )
    result.add_argument(
        "--config",
        help="this step's part of the configuration, as JSON; unless given, that of the executor input",
    )
    result.add_argument("--overrides", default="{}", help="the run's changes of the sft and dpo settings, as JSON")
    result.add_argument("--executor-input", default="{}", help="what Kubeflow passes in as '{{$}}'")
    return result


def output_folder(executor_input: str) -> Path:
    """Returns a folder on the disk that outputs are written to; the working directory when a step is run by hand."""
    file = json.loads(executor_input).get("outputs", {}).get("outputFile")
    return Path(file).parent if file else Path.cwd()


def remove_outputs(executor_input: str) -> None:
    """Removes what an earlier attempt in this container has written, so that each starts with empty folders."""
    outputs = json.loads(executor_input).get("outputs", {})
    if not outputs.get("outputFile"):
        return
    artifacts = [output["artifacts"][0]["uri"] for output in outputs.get("artifacts", {}).values()]
    paths = [MOUNTED.sub(r"/\1/", uri) for uri in artifacts]
    paths += [output["outputFile"] for output in outputs.get("parameters", {}).values()]
    for path in [*map(Path, paths), *output_folder(executor_input).glob("*")]:
        for written in (path, *path.parent.glob(f"{path.name}.*")):  # such as a half-written `model.partial`
            shutil.rmtree(written, ignore_errors=True)
            written.unlink(missing_ok=True)


def artifacts_root(executor_input: str) -> str | None:
    """Returns where Kubeflow keeps the artifacts of this run and all others; None where it has none, as on a laptop."""
    artifacts = json.loads(executor_input).get("outputs", {}).get("artifacts", {}).values()
    uri = next((artifact["artifacts"][0]["uri"] for artifact in artifacts), "")
    # <root>/<pipeline>/<run>/<task>/<execution>/<artifact>
    return uri.rsplit("/", 5)[0] if "://" in uri and uri.count("/") >= 7 else None


def write_outputs(executor_input: str, *, parameters: dict[str, Any], metadata: dict[str, dict[str, Any]]) -> None:
    """Writes output parameters and the metadata of output artifacts to the paths in the executor input.

    Args:
        executor_input: the JSON of `'{{$}}'`; `{}` when a step is run by hand, and then nothing is written.
        parameters: output parameter name -> value.
        metadata: output artifact name -> its metadata; for a Metrics artifact these are the numbers that the UI draws,
            for a ClassificationMetrics artifact the result of `confusion_matrix`. Values that are null or not finite
            are left out.
    """
    outputs = json.loads(executor_input).get("outputs", {})
    if not outputs.get("outputFile"):
        return
    artifacts = {
        name: {"artifacts": [_artifact(name, output["artifacts"][0], metadata.get(name, {}))]}
        for name, output in outputs.get("artifacts", {}).items()
    }
    for name in parameters:
        _write(outputs["parameters"][name]["outputFile"], json.dumps(parameters[name]))
    _write(outputs["outputFile"], json.dumps({"parameterValues": parameters, "artifacts": artifacts}, allow_nan=False))


def confusion_matrix(categories: list[str], matrix: list[list[int]]) -> dict[str, Any]:
    """Returns the metadata that `kfp.dsl.ClassificationMetrics.log_confusion_matrix` would make.

    Args:
        matrix: one row per expected category, with one count per category of the answer.
    """
    return {
        CONFUSION_MATRIX: {
            "annotationSpecs": [{"displayName": category} for category in categories],
            "rows": [{"row": row} for row in matrix],
        }
    }


def _artifact(name: str, artifact: dict, metadata: dict[str, Any]) -> dict:
    kept = {key: value for key, value in metadata.items() if key == CONFUSION_MATRIX or _storable(value)}
    return {"name": artifact.get("name", name), "uri": artifact["uri"], "metadata": kept}


def _storable(value: Any) -> bool:
    return isinstance(value, str | bool) or (isinstance(value, int | float) and math.isfinite(value))


def _write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    storage.write_text(path, text)
