"""The acceptance of a cluster, against the server that stands in for one, with either retry policy."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.__main__ import main
from tests.digests import give_digests
from tests.storage_servers import BUCKET

KUBECTL = """#!{python}
import re, sys, urllib.request
run = re.search(r"pipeline/runid=(\\S+)", " ".join(sys.argv))[1]
urllib.request.urlopen(urllib.request.Request("{url}/apis/v2beta1/pods/" + run + ":delete", method="POST"))
print("pod deleted")
"""


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Images with digests, which no process needs: a cluster would refuse tags of this machine."""
    give_digests(tmp_path / "images", monkeypatch)


@contextmanager
def cluster(folder: Path, *options: str) -> Iterator[str]:
    """A server in a process of its own, as a cluster is, and a kubectl for it on PATH; its address."""
    command = [sys.executable, "-m", "tests.kubeflow_pods", str(folder / "cluster"), *options]
    log = open(folder / "cluster.log", "w")  # noqa: SIM115
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        url = process.stdout.readline().strip()
        kubectl = folder / "bin" / "kubectl"
        kubectl.parent.mkdir()
        kubectl.write_text(KUBECTL.format(python=sys.executable, url=url))
        kubectl.chmod(0o755)
        yield url
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()
        log.close()


# The deadline, which counts whole minutes, ends nothing but a process: tests/posttrain/step/test_attempts.py.
@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("options", "only", "facts"),
    [
        (
            ["--num-nodes-read", "99"],
            ["promoted", "reused", "refused", "deleted", "terminated", "retried", "sweep", "own_command"],
            {
                "a pod is deleted": "its step is tried again by Argo",
                "a step exits with an error": r"not tried again by Argo \(1 attempts\)",
                "a terminated run": r"FAILED \(canceled\)",
                "its exit task": "is left out",
                "task_details": "stop before .*publish_model",
            },
        ),
        (
            ["--without-defaults"], ["deleted", "terminated", "retried"],
            {
                "a pod is deleted": "the run ends FAILED",
                "a step exits with an error": r"tried again by Argo \([2-9] attempts\)",
                "a terminated run": r"FAILED \(canceled\)",
                "its exit task": "runs",
            },
        ),
    ],
    ids=["defaults of 2.17", "without"],
)  # fmt: skip
def test_the_line_is_accepted(gs_root, tmp_path, monkeypatch, capfd, images, options, only, facts):
    with cluster(tmp_path, *options) as url:
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
        monkeypatch.setattr("runner.kubeflow.POLL_SECONDS", 1.0)
        for module in ("posttrain.step.records", "runner.there"):
            monkeypatch.setattr(f"{module}.LEASE_SECONDS", 5.0)  # after which a step that was killed counts as dead
        exit_code = main(["--endpoint", url, "--storage", f"gs://{BUCKET}", "--only", *only])
    out = capfd.readouterr().out
    with capfd.disabled():
        print(out)
    assert exit_code == 0
    for name, fact in facts.items():
        assert re.search(rf"{name} +{fact}", out), name
