"""A cluster to try the line on, with a tiny model and its data in a storage of the cluster's.

endpoint, storage, the cluster's own settings -> runs of `run_pipeline.py`, what they printed and recorded
"""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import run_pipeline
from examples.task_api.tiny import build_tiny_model
from posttrain import storage
from posttrain.step.records import StepRecord, read_records
from runner import kubeflow
from tests.tiny_line import write_line

SMALL = {"cpu": "1", "memory": "3Gi"}
PLACEMENT = {"cpu": SMALL, "gpu": SMALL | {"accelerator_count": 0, "shm_size": "256Mi"}}
WAIT_SECONDS = 1200.0  # for a pod to start: a cluster may have to add a node


@dataclass(frozen=True)
class Run:
    """A run of the line as `run_pipeline.py` told it."""

    exit_code: int
    out: str
    records: list[StepRecord]

    def value(self, key: str) -> str:
        """The value of the last `key: value` line."""
        return (re.findall(rf"^{key}: +(.*)$", self.out, re.MULTILINE) or [""])[-1]

    def attempts(self, step: str) -> list[StepRecord]:
        own = (record for record in self.records if record.step == step)
        return sorted(own, key=lambda record: record.attempt)


@dataclass
class Site:
    """A cluster, and a folder of its storage."""

    endpoint: str
    root: str  # everything of this trial lies below it
    folder: Path
    configs: list[Path]  # the line, and the cluster's own settings on top
    flags: list[str]  # of every run
    namespace: str
    client: kubeflow.Client
    run_ids: dict[str, str] = field(default_factory=dict)  # name -> id

    @classmethod
    def prepare(cls, *, endpoint: str, root: str, folder: Path, configs: list[Path], **access: str | None) -> "Site":
        """Uploads the tiny model and its data, and writes the configuration of the line for them."""
        files = folder / "line"
        files.mkdir(parents=True)
        model = build_tiny_model(files / "model", seed=0, num_steps=60)
        line = write_line(files, model, **_addresses(root), placement=PLACEMENT)
        line.write_text(json.dumps(_with_prompts(line, root)), encoding="utf-8")
        storage.upload_folder(files, storage.join(root, "data"))
        given = {name: value for name, value in access.items() if value}
        flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
        client = kubeflow.Client(endpoint, **given)
        namespace = given.get("namespace", "kubeflow")
        return cls(endpoint, root, folder, [line, *configs], flags, namespace, client)

    @property
    def storage_root(self) -> str:
        return storage.join(self.root, "root")

    def run(self, *more: str, meanwhile: Callable[[str], None] | None = None) -> Run:
        """Runs the line to its end; `meanwhile` gets the run's id, in another thread, when it is submitted."""
        command = ["--config", *map(str, self.configs), "--endpoint", self.endpoint, *self.flags, *more]
        out, failures = io.StringIO(), []

        def act() -> None:
            try:
                self.wait(lambda: _run_id(out.getvalue()), "the run to be submitted")
                meanwhile(_run_id(out.getvalue()))
            except (AssertionError, OSError, ValueError) as error:
                failures.append(error)

        actor = threading.Thread(target=act, daemon=True)
        if meanwhile:
            actor.start()
        with contextlib.redirect_stdout(out):
            exit_code = run_pipeline.main(command)
        self.log(out.getvalue())
        if meanwhile:
            actor.join(60)
        if failures:
            raise AssertionError(f"{failures[0]}\n{out.getvalue()}") from failures[0]
        run_id = _run_id(out.getvalue())
        return Run(exit_code, out.getvalue(), read_records(self.storage_root, run_id) if run_id else [])

    def log(self, text: str) -> None:
        with open(self.folder / "runs.log", "a", encoding="utf-8") as file:
            file.write(text)

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        until = time.monotonic() + WAIT_SECONDS
        while not (value := condition()):
            assert time.monotonic() < until, f"waited {WAIT_SECONDS:.0f} s for {what}"
            time.sleep(0.5)
        return value

    def wait_for_checkpoint(self, run_id: str, step: str) -> None:
        """Waits until the training of this run has stored a checkpoint."""
        folder = storage.join(self.storage_root, "checkpoints", step)
        self.wait(
            lambda: [
                name for name in storage.list_files(folder) if f"/{run_id}-" in name and name.endswith("LETE.json")
            ],
            f"a checkpoint of {step}",
        )

    def delete_pods(self, run_id: str) -> None:
        """Deletes the pod of the step that runs, as an eviction by the API would."""
        command = ["kubectl", "delete", "pod", "--namespace", self.namespace, "--wait=false"]
        command += ["--selector", f"pipeline/runid={run_id}", "--field-selector", "status.phase=Running"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 and "deleted" in done.stdout, f"{' '.join(command)}: {done.stdout}{done.stderr}"

    @property
    def has_kubectl(self) -> bool:
        return shutil.which("kubectl") is not None

    def tasks(self, run_id: str) -> list[Any]:
        """Returns what the API tells of the tasks of a run."""
        return self.client.get_run(run_id).run_details.task_details or []

    def kfp(self, *words: str) -> subprocess.CompletedProcess:
        """Runs kfp's own command."""
        token = (
            ["--existing-token", kubeflow.TokenFile(self.client.token_file).read()] if self.client.token_file else []
        )
        command = [Path(sys.executable).with_name("kfp"), "--endpoint", self.endpoint, "--namespace", self.namespace]
        return subprocess.run([*command, *token, *words], capture_output=True, text=True)


def _run_id(out: str) -> str:
    """The id of the last run that was started."""
    return (re.findall(r"^Run: +(\S+)$", out, re.MULTILINE) or [""])[-1]


def _addresses(root: str) -> dict[str, Any]:
    data = storage.join(root, "data")
    return {
        "pipeline_id": "acceptance",
        "base_model": storage.join(data, "model"),
        "sft_dataset": storage.join(data, "sft.jsonl"),
        "preference_dataset": storage.join(data, "preferences.jsonl"),
        "storage_root": storage.join(root, "root"),
    }


def _with_prompts(line: Path, root: str) -> dict[str, Any]:
    """Returns the configuration of the line with its files of prompts in the storage."""
    config = yaml.safe_load(line.read_text(encoding="utf-8"))
    for key in ("red_team_prompts", "off_topic_prompts"):
        config["validation"][key] = storage.join(root, "data", Path(config["validation"][key]).name)
    return config


def temporary_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="test-cluster-"))
