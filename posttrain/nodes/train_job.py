"""The TrainJob of Kubeflow Trainer 2 that runs one attempt of a training on several nodes.

an order, the workers' placement -> the object, as JSON

Trainer makes a JobSet of it, by the TrainingRuntime that it names, and gives every pod the variables PET_*, which
torchrun reads. What placement says of pods is patched into the runtime's template.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

from posttrain.config import Workers
from posttrain.config.line import WORKER
from posttrain.config.placement import QUEUE_LABEL, SECRETS_FOLDER, Placement
from posttrain.train.order import ORDER, Kept, Order

FINGERPRINT = "posttrain/fingerprint"  # annotations
RUN, STEP, ATTEMPT = "posttrain/run", "posttrain/step", "posttrain/attempt"
MANAGER = "posttrain/launch"  # of what is patched into the runtime
POD = "node"  # Trainer's name of the pods that train, and of their container
SHARED_MEMORY = "dshm"
COMMAND = ("python", "-m", "torch.distributed.run", "-m", WORKER)

Object = dict[str, Any]


def name_of(run_id: str, step: str, attempt: int) -> str:
    """Returns the name of an attempt's TrainJob. A second one of the same attempt cannot be created beside it."""
    digest = hashlib.sha256(f"{run_id} {step} {attempt}".encode()).hexdigest()
    return f"{step.replace('_', '-')}-{digest[:12]}"


def train_job(order: Order, written: Kept, workers: Workers, *, owner: Object | None) -> Object:
    """Returns the TrainJob of an order that was `written`. It is removed together with its owner, if it has one."""
    placement = Placement.model_validate(workers.placement)
    metadata = {"name": name_of(order.run_id, order.step, order.attempt), "annotations": _notes(order)}
    if placement.queue:
        metadata["labels"] = {QUEUE_LABEL: placement.queue}
    if owner:
        metadata["ownerReferences"] = [owner]
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": workers.runtime},
            "activeDeadlineSeconds": _deadline_minutes(workers, placement) * 60,
            "trainer": _trainer(order, written, workers.image, placement),
            "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": _patch(placement)}],
        },
    }


def is_of(job: Object, order: Order) -> bool:
    """Tells whether a TrainJob is that of an order, and not of another run that has the same name for it."""
    notes, args = job["metadata"].get("annotations", {}), job["spec"]["trainer"].get("args", [])
    return _notes(order).items() <= notes.items() and args[:1] == [order.uri(ORDER)]


def _notes(order: Order) -> dict[str, str]:
    return {FINGERPRINT: order.fingerprint, RUN: order.run_id, STEP: order.step, ATTEMPT: str(order.attempt)}


def _deadline_minutes(workers: Workers, placement: Placement) -> int:
    """Returns the limit of a TrainJob, which Trainer counts anew when a queue admits it; else its pods wait in it."""
    return workers.deadline_minutes + (0 if placement.queue else workers.queue_minutes)


def _trainer(order: Order, written: Kept, image: str, placement: Placement) -> Object:
    resources = {"cpu": placement.cpu, "memory": placement.memory}
    if placement.accelerator_count:
        resources[placement.accelerator_type] = str(placement.accelerator_count)
    return {
        "image": image,
        "command": list(COMMAND),
        "args": [written.uri, written.sha256],
        "env": list(_environment(placement)),
        "numNodes": order.num_nodes,
        "numProcPerNode": order.num_processes_per_node,
        "resourcesPerNode": {"requests": resources, "limits": resources},
    }


def _environment(placement: Placement) -> Iterator[Object]:
    for name, value in placement.env.items():
        yield {"name": name, "value": value}
    for entry in placement.config_maps:
        source = {"name": entry.config_map, "key": entry.key, "optional": True}
        yield {"name": entry.env, "valueFrom": {"configMapKeyRef": source}}
    for entry in placement.secrets:
        if entry.as_file:
            yield {"name": entry.env, "value": f"{SECRETS_FOLDER}/{entry.secret}/{entry.key}"}
        else:
            source = {"name": entry.secret, "key": entry.key, "optional": True}
            yield {"name": entry.env, "valueFrom": {"secretKeyRef": source}}


def _patch(placement: Placement) -> Object:
    """Returns what is patched into the runtime: where its pods may run, and what they mount."""
    spec = {"nodeSelector": placement.node_selector, "affinity": _affinity(placement)}
    spec["tolerations"] = [_toleration(toleration.model_dump()) for toleration in placement.tolerations]
    spec["imagePullSecrets"] = [{"name": name} for name in placement.image_pull_secrets]
    spec["volumes"], mounts = _volumes(placement)
    spec["containers"] = [{"name": POD, "volumeMounts": mounts}] if mounts else []
    pod = {"spec": {key: value for key, value in spec.items() if value}}
    metadata = {"labels": placement.pod_labels, "annotations": placement.pod_annotations}
    if metadata := {key: value for key, value in metadata.items() if value}:
        pod["metadata"] = metadata
    job = {"name": POD, "template": {"spec": {"template": pod}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}


def _volumes(placement: Placement) -> tuple[list[Object], list[Object]]:
    volumes, mounts = [], []
    if placement.shm_size:
        memory = {"medium": "Memory", "sizeLimit": placement.shm_size}
        volumes.append({"name": SHARED_MEMORY, "emptyDir": memory})
        mounts.append({"name": SHARED_MEMORY, "mountPath": "/dev/shm"})
    for name in dict.fromkeys(secret.secret for secret in placement.secrets if secret.as_file):
        volumes.append({"name": name, "secret": {"secretName": name, "optional": True}})
        mounts.append({"name": name, "mountPath": f"{SECRETS_FOLDER}/{name}"})
    return volumes, mounts


def _toleration(toleration: Object) -> Object:
    seconds = toleration.pop("toleration_seconds")
    return {key: value for key, value in (toleration | {"tolerationSeconds": seconds}).items() if value is not None}


def _affinity(placement: Placement) -> Object:
    needed, wished = [], []
    for term in placement.node_affinity:
        requirements = [requirement.model_dump() for requirement in term.match]
        if term.weight is None:
            needed.append({"matchExpressions": requirements})
        else:
            wished.append({"weight": term.weight, "preference": {"matchExpressions": requirements}})
    affinity = {"preferredDuringSchedulingIgnoredDuringExecution": wished} if wished else {}
    if needed:
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": needed}
    return {"nodeAffinity": affinity} if affinity else {}
