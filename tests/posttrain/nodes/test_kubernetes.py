"""What the client asks the Kubernetes API, and what it makes of each answer; how it speaks TLS is in test_launch.py."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from posttrain.nodes import kubernetes
from posttrain.nodes.kubernetes import Kubernetes, condition, has_ended

JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainjobs"


@dataclass
class Answer:
    status_code: int = 200
    body: Any = None
    reason: str = "Reason"
    num_read: int = 0

    @property
    def ok(self) -> bool:
        return self.status_code < 400

    @property
    def text(self) -> str:
        return self.body if isinstance(self.body, str) else json.dumps(self.body)

    def json(self) -> Any:
        return json.loads(self.text)

    def iter_lines(self) -> Iterator[str]:
        for line in self.body:
            self.num_read += 1
            yield line


@dataclass(frozen=True)
class Client(Kubernetes):
    """The client, in front of answers that a test gives."""

    answer: Answer = field(default_factory=Answer)
    asked: list[tuple] = field(default_factory=list)

    @contextmanager
    def _answer(self, method: str, path: str, *, body=None, query=None, seconds: float) -> Iterator[Answer]:
        self.asked.append((method, path, body, query, seconds))
        yield self.answer


def client(status: int = 200, body: Any = None) -> Client:
    return Client("https://k", "ml", Path("/nowhere"), Answer(status, body))


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "https://10.0.0.1:443"),
        ({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, "https://[fd00::1]:6443"),
        ({}, None),
    ],
)
def test_a_pod_knows_its_cluster(environment, url, tmp_path, monkeypatch):
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(kubernetes, "SERVICE_ACCOUNT", tmp_path)
    assert Kubernetes.of_this_pod() is None
    (tmp_path / "namespace").write_text("ml\n")
    assert Kubernetes.of_this_pod() == (Kubernetes(url, "ml", tmp_path) if url else None)


def test_what_the_calls_ask():
    api = client(body={"status": {"allowed": True}, "metadata": {}})
    assert api.create({"kind": "TrainJob"}) == api.answer.body == api.get("a/b")
    api.delete("a")
    api.delete("a", seconds=1.5)
    assert api.has_runtime("posttrain") and api.may("create", "trainjobs")
    review = {"namespace": "ml", "verb": "create", "group": "trainer.kubeflow.org", "resource": "trainjobs"}
    assert api.asked.pop()[2]["spec"] == {"resourceAttributes": review}
    foreground = {"propagationPolicy": "Foreground"}
    assert api.asked == [
        ("POST", JOBS, {"kind": "TrainJob"}, None, 30.0),
        ("GET", f"{JOBS}/a/b", None, None, 30.0),
        ("DELETE", f"{JOBS}/a", foreground, None, 30.0),
        ("DELETE", f"{JOBS}/a", foreground, None, 1.5),
        ("GET", JOBS.replace("trainjobs", "trainingruntimes") + "/posttrain", None, None, 30.0),
    ]


def test_what_is_not_there_or_there_already_is_none():
    assert client(409).create({}) is client(404).get("a") is client(404).owner_of("a") is None
    assert not client(404).has_runtime("a")
    client(404).delete("a")
    for call in (client(404).create, client(409).get):
        with pytest.raises((OSError, ValueError), match="the Kubernetes API answered 4"):
            call("a")


@pytest.mark.parametrize("status", [{"allowed": False}, {}])
def test_what_is_not_allowed_is_not(status):
    assert not client(body={"status": status}).may("get", "pods", group="")


def test_a_pod_belongs_to_what_controls_it():
    owner = {"apiVersion": "v1", "kind": "Workflow", "name": "w", "uid": "1"}
    others = [owner | {"name": "other"}, owner | {"controller": True, "blockOwnerDeletion": True}]
    assert client(body={"metadata": {"ownerReferences": others}}).owner_of("a b") == owner
    api = client(body={"metadata": {}})
    assert api.owner_of("a b") is None
    assert api.asked == [("GET", "/api/v1/namespaces/ml/pods/a%20b", None, None, 30.0)]


def test_a_change_is_waited_for_until_the_first_event():
    api = client(body=["event", "another"])
    api.wait_for_change({"metadata": {"name": "a", "resourceVersion": "7"}}, seconds=15)
    query = {
        "watch": "true",
        "fieldSelector": "metadata.name=a",
        "resourceVersion": "7",
        "timeoutSeconds": "15",
    }
    assert api.asked == [("GET", JOBS, None, query, 45.0)] and api.answer.num_read == 1
    client(body=[]).wait_for_change({"metadata": {"name": "a"}}, seconds=1)
    with pytest.raises(OSError, match="answered 500"):
        client(500, []).wait_for_change({"metadata": {"name": "a"}}, seconds=1)


@pytest.mark.parametrize(
    ("status", "error", "remedy"),
    [
        (403, ValueError, "; give this pod's service account the Role of configs/kubernetes/trainer.yaml"),
        *((status, ValueError, "; look whether Kubeflow Trainer 2 is installed") for status in (400, 405, 422)),
        *((status, OSError, "") for status in (401, 408, 410, 429, 500, 503)),
    ],
)
def test_a_refusal_says_what_to_do_and_a_fault_may_pass(status, error, remedy):
    with pytest.raises(error) as raised:
        client(status, {"message": "no\n more"}).get("a")
    assert str(raised.value).startswith(f"GET {JOBS}/a: the Kubernetes API answered {status}: no more{remedy}")
    assert remedy or str(raised.value).endswith("no more")


@pytest.mark.parametrize("body", ["<html>", "[]", {}, "null"])
def test_an_answer_without_a_message_has_its_reason(body):
    with pytest.raises(OSError, match="answered 500: Reason$"):
        client(500, body).get("a")
    with pytest.raises(OSError, match="answered 500: x{300}$"):
        client(500, {"message": "x" * 400}).get("a")


def job(name: str, status: str = "True") -> dict:
    return {"status": {"conditions": [{"type": "Suspended", "status": "False"}, {"type": name, "status": status}]}}


def test_conditions_count_if_they_are_true():
    assert condition(job("Failed"), "Failed") == {"type": "Failed", "status": "True"}
    assert condition(job("Failed"), "Suspended") is condition(job("Failed", "False"), "Failed") is None
    assert condition({}, "Failed") is None
    assert [has_ended(one) for one in (None, job("Complete"), job("Failed"), job("Created"), {})] == [
        True, True, True, False, False,
    ]  # fmt: skip
