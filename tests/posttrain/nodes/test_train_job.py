"""Tests TrainJobs, and the runtime in configs/, against the models that Kubeflow Trainer publishes."""

import importlib.metadata
import re
from pathlib import Path

import kubeflow_trainer_api.models as models
import pytest

from posttrain.config import Workers
from posttrain.config.placement import Placement
from posttrain.nodes import kubernetes
from posttrain.nodes.train_job import COMMAND, POD, is_of, name_of, train_job
from posttrain.train.order import Kept, Order
from tests.trainer_server import manifests

PLACEMENT = {
    "cpu": "16",
    "memory": "96Gi",
    "accelerator_count": 2,
    "shm_size": "32Gi",
    "node_selector": {"pool": "h100"},
    "node_affinity": [
        {"match": [{"key": "zone", "operator": "In", "values": ["a"]}]},
        {"match": [{"key": "spot", "operator": "Exists"}], "weight": 50},
    ],
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "toleration_seconds": 60}],
    "queue": "gpus",
    "pod_labels": {"team": "ml"},
    "pod_annotations": {"note": "x"},
    "image_pull_secrets": ["registry"],
    "env": {"NCCL_DEBUG": "INFO"},
    "secrets": [
        {"env": "AWS_SECRET_ACCESS_KEY", "secret": "minio", "key": "secret-key"},
        {"env": "GOOGLE_APPLICATION_CREDENTIALS", "secret": "gcs", "key": "key.json", "as_file": True},
    ],
    "config_maps": [{"env": "AWS_ENDPOINT_URL", "config_map": "minio", "key": "endpoint"}],
}
OWNER = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "post-training-x7k2p", "uid": "w-1"}
IMAGE = f"registry.example.org/train@sha256:{'0' * 64}"


WORKERS = Workers(num_nodes=2, image=IMAGE, runtime="ours", placement={}, deadline_minutes=200, queue_minutes=9)
ORDER = Order(
    run_id="run-1", step="train_sft", attempt=2, fingerprint="f" * 64, storage_root="gs://b/store", inputs={},
    config={}, num_nodes=2, num_processes_per_node=2, limit_seconds=60, lapse_seconds=600,
)  # fmt: skip


def job(**changes) -> dict:
    placement = PLACEMENT | changes
    assert Placement.model_validate(placement)
    workers = WORKERS.model_copy(update={"placement": placement})
    return train_job(ORDER, Kept(uri="gs://b/order.json", sha256="a" * 64), workers, owner=OWNER)


def unknown(model: object, raw: object, where: str = "") -> list[str]:
    """Lists the keys that the published model of an object does not have: it would drop them in silence."""
    if isinstance(raw, list) and isinstance(model, list):
        return [key for at, one in enumerate(raw) for key in unknown(model[at], one, f"{where}[{at}]")]
    if not isinstance(raw, dict) or not hasattr(model, "model_fields_set"):
        return []
    names = {field.alias or name: name for name, field in type(model).model_fields.items()}
    inner = {key: getattr(model, names[key]) for key in raw.keys() & names.keys()}
    own = [f"{where}.{key}" for key in raw.keys() - names.keys()]
    return own + [key for name, value in inner.items() for key in unknown(value, raw[name], f"{where}.{name}")]


@pytest.mark.parametrize("changes", [{}, {"accelerator_count": 0, "shm_size": None, "queue": None, "secrets": []}])
def test_a_train_job_is_what_trainer_publishes(changes):
    raw = job(**changes)
    parsed = models.TrainerV1alpha1TrainJob.from_dict(raw)
    assert unknown(parsed, raw) == []
    assert parsed.spec.trainer.num_nodes == 2 and parsed.spec.trainer.num_proc_per_node == 2


def test_the_workers_of_a_train_job_are_placed_as_the_step_would_be():
    spec, metadata = job()["spec"], job()["metadata"]
    assert metadata["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}
    assert metadata["ownerReferences"] == [OWNER]
    assert metadata["name"] == name_of("run-1", "train_sft", 2) != name_of("run-1", "train_sft", 3)
    assert spec["activeDeadlineSeconds"] == 12_000
    assert spec["runtimeRef"] == {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": "ours"}
    trainer = spec["trainer"]
    assert [trainer["image"], *trainer["command"], *trainer["args"]] == [IMAGE, *COMMAND, "gs://b/order.json", "a" * 64]
    resources = {"cpu": "16", "memory": "96Gi", "nvidia.com/gpu": "2"}
    assert trainer["resourcesPerNode"] == {"requests": resources, "limits": resources}
    env = {one["name"]: one.get("value") or one["valueFrom"] for one in trainer["env"]}
    assert env["GOOGLE_APPLICATION_CREDENTIALS"] == "/etc/posttrain/gcs/key.json"
    secret = {"name": "minio", "key": "secret-key", "optional": True}  # preflight says what is missing
    assert env["AWS_SECRET_ACCESS_KEY"] == {"secretKeyRef": secret}
    assert env["AWS_ENDPOINT_URL"] == {"configMapKeyRef": {"name": "minio", "key": "endpoint", "optional": True}}
    (patched,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = patched["template"]["spec"]["template"]
    assert (patched["name"], pod["metadata"]) == (POD, {"labels": {"team": "ml"}, "annotations": {"note": "x"}})
    assert pod["spec"]["tolerations"][0]["tolerationSeconds"] == 60
    assert pod["spec"]["volumes"] == [
        {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}},
        {"name": "gcs", "secret": {"secretName": "gcs", "optional": True}},
    ]
    assert [mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]] == [
        "/dev/shm",
        "/etc/posttrain/gcs",
    ]
    affinity = pod["spec"]["affinity"]["nodeAffinity"]
    assert affinity["preferredDuringSchedulingIgnoredDuringExecution"][0]["weight"] == 50
    assert affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]


@pytest.mark.parametrize("changes", [{"run_id": "run-2"}, {"fingerprint": "e" * 64}, {"storage_root": "gs://b/other"}])
def test_a_train_job_is_of_the_order_that_it_was_made_for_alone(changes):
    own = train_job(ORDER, Kept(uri=ORDER.uri("order.json"), sha256="a" * 64), WORKERS, owner=None)
    assert is_of(own, ORDER)
    assert not is_of(own, ORDER.model_copy(update=changes))


def test_what_a_toleration_does_not_say_is_left_out():
    spec = job(tolerations=[{"key": "gpu", "operator": "Exists"}])["spec"]
    (patched,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert patched["template"]["spec"]["template"]["spec"]["tolerations"] == [{"key": "gpu", "operator": "Exists"}]


def test_the_name_of_a_train_job_is_one_that_kubernetes_takes():
    """JobSet adds to it for the names of pods, which have 63 characters at most."""
    assert re.fullmatch(r"train-sft-[0-9a-f]{12}", name_of("run-1", "train_sft", 2))


def test_a_placement_without_wishes_patches_nothing():
    plain = dict.fromkeys(PLACEMENT)
    raw = job(**{name: Placement.model_fields[name].get_default() for name in plain})
    (patched,) = raw["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert patched == {"name": POD, "template": {"spec": {"template": {"spec": {}}}}}
    assert "labels" not in raw["metadata"]
    assert raw["spec"]["activeDeadlineSeconds"] == 12_540  # no queue begins it anew, so the wait for nodes counts


def test_the_runtime_ends_an_attempt_with_its_first_pod_and_lets_none_be_root():
    raw = manifests()["TrainingRuntime"]
    parsed = models.TrainerV1alpha1TrainingRuntime.from_dict(raw)
    assert unknown(parsed, raw) == []
    assert raw["metadata"]["name"] == Placement().training_runtime
    assert parsed.spec.ml_policy.torch is not None
    jobset = parsed.spec.template.spec
    assert jobset.failure_policy.max_restarts == 0
    (replicated,) = jobset.replicated_jobs
    pod = replicated.template.spec.template.spec
    assert (replicated.name, replicated.template.spec.backoff_limit, pod.restart_policy) == (POD, 0, "Never")
    assert (pod.security_context.run_as_user, pod.security_context.run_as_non_root) == (10001, True)
    (container,) = pod.containers
    assert container.name == POD and container.security_context.capabilities.drop == ["ALL"]
    assert container.security_context.read_only_root_filesystem is True
    assert [mount.mount_path for mount in container.volume_mounts] == ["/tmp", "/cache"]  # what the image writes to


def test_the_role_allows_what_the_launch_step_does_and_no_more():
    rules = {(one["apiGroups"][0], one["resources"][0]): one["verbs"] for one in manifests()["Role"]["rules"]}
    assert rules == {
        (kubernetes.GROUP, "trainjobs"): list(kubernetes.VERBS),
        (kubernetes.GROUP, "trainingruntimes"): ["get"],
        ("", "pods"): ["get", "list"],
    }
    assert manifests()["RoleBinding"]["roleRef"]["name"] == manifests()["Role"]["metadata"]["name"]
    assert Path(kubernetes.MANIFESTS).is_file()


def test_the_published_models_are_those_of_the_release_that_the_documentation_names():
    release = importlib.metadata.version("kubeflow-trainer-api")
    assert f"Trainer {release.rpartition('.')[0]}" in Path(kubernetes.MANIFESTS).read_text()
