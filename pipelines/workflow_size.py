"""Estimates how large the Workflow of a run becomes, which Argo keeps as one object in Kubernetes.

`Package` -> bytes of the Workflow when every step has run, before compression

A step of a run is three nodes (its driver, a DAG around its pod, the pod), a group two, and where each template has a
retry strategy, as Kubeflow Pipelines 2.17 installs it, all of them are doubled. The driver's nodes repeat the
specification of the task; the patch of the pod that it makes is repeated by all six: JSON in a string in JSON, in which
each quotation mark is escaped once more. What a step gets as a value costs ten times its length, so settings go by
their digest (`posttrain.config.table`). Of what is left, Kubeflow's own description of artifacts is the largest part.

Measured on 2.17.0 with Argo 4.0.5: 1.40 MB for a line of 18 steps, 190 kB for each iteration of a sweep's loop, whose
Workflow could not be saved any more at 6.6 MB. The estimates for those graphs were within 8 %.
"""

import json
from typing import Any

from pipelines.package import Package, Spec, Task

MAX_WORKFLOW_BYTES = 6_000_000  # before compression
NUM_COPIES = 2  # of each node: itself, and that of its retries
NODE_BYTES = 900  # of id, name, template, times, children and resources
UNSEEN = 1.2  # measured bytes of nodes per byte of what is written out here
ADDRESS = f"s3://bucket/prefix/pipeline/{'0' * 36}/task/{'0' * 36}/artifact"
STORE = {
    "accessKeyKey": "accesskey",
    "disableSSL": "true",
    "endpoint": "seaweedfs.kubeflow:9000",
    "fromEnv": "false",
    "maxRetries": "5",
    "region": "us-east-1",
    "secretKeyKey": "secretkey",
    "secretName": "mlpipeline-minio-artifact",
}
GIVEN = {"sha256": "0" * 64, "store_session_info": json.dumps({"Provider": "s3", "Params": STORE})}
LAUNCHER = (
    "/kfp-launcher/launch --pipeline_name post-training --run_id 00000000-0000-0000-0000-000000000000 "
    "--execution_id 999 --pod_name $(KFP_POD_NAME) --pod_uid $(KFP_POD_UID) --mlmd_server_address "
    "$(METADATA_GRPC_SERVICE_HOST) --mlmd_server_port $(METADATA_GRPC_SERVICE_PORT) --publish_logs true --"
)
REJECTION = "posttrain.reject"


def workflow_bytes(package: Package) -> int:
    """Returns the size of the Workflow of a run that is promoted."""
    outermost = sum(_nodes_bytes(package, task) for task in package.inside(None))
    return _spec_bytes(package) + round(UNSEEN * outermost)


def iteration_bytes(package: Package, loop: Task) -> int:
    """Returns what each iteration of a loop adds to the Workflow."""
    inside = sum(_nodes_bytes(package, task) for task in package.inside(loop))
    return round(UNSEEN * (_group_bytes(loop) + NUM_COPIES * NODE_BYTES + inside))


def num_iterations(loop: Task) -> int:
    return len(json.loads(loop.spec["parameterIterator"]["items"]["raw"]))


def _nodes_bytes(package: Package, task: Task) -> float:
    """Returns the bytes of the nodes of a task, and of those in it, which a promoted run makes."""
    if task.container:
        return 0 if task.runs(REJECTION) else _step_bytes(task)
    if task.is_loop:
        return _group_bytes(task) + num_iterations(task) * iteration_bytes(package, task) / UNSEEN
    return _group_bytes(task) + sum(_nodes_bytes(package, inner) for inner in package.inside(task))


def _spec_bytes(package: Package) -> int:
    """Returns the bytes of the Workflow's own specification: its arguments and templates."""
    return round(1.6 * (len(_json(package.spec)) + len(_json(package.platform)))) + NODE_BYTES * len(package.tasks)


def _step_bytes(step: Task) -> int:
    patch = len(_in_node(_pod_spec_patch(step)))
    num_bytes = sum(len(_in_node(_json(part))) for part in (step.component, step.spec, step.container, step.kubernetes))
    return NUM_COPIES * (3 * NODE_BYTES + num_bytes + 3 * patch)


def _group_bytes(group: Task) -> int:
    num_bytes = sum(len(_in_node(_json(part))) for part in (group.component, group.spec))
    return NUM_COPIES * (2 * NODE_BYTES + num_bytes)


def _pod_spec_patch(step: Task) -> str:
    """Returns about what the driver makes of a step: the launcher's command line, with all that the step gets."""
    inputs, outputs = (
        {kind: step.declared(side, kind) for kind in ("parameters", "artifacts")} for side in ("inputs", "outputs")
    )
    executor_input = {
        "inputs": {
            "parameterValues": {name: step.constants.get(name, "0" * 40) for name in inputs["parameters"]},
            "artifacts": {name: _artifact(**GIVEN) for name in inputs["artifacts"]},
        },
        "outputs": {
            "parameters": {name: {"outputFile": f"/tmp/kfp/outputs/{name}"} for name in outputs["parameters"]},
            "artifacts": {name: _artifact() for name in outputs["artifacts"]},
            "outputFile": "/tmp/kfp_outputs/output_metadata.json",
        },
    }
    command = [*LAUNCHER.split(), "--executor_input", _json(executor_input), "--component_spec", _json(step.component)]
    args = [*step.container.get("command", []), *step.container.get("args", [])]
    main = step.container | {"name": "main", "command": command, "args": args}
    return _json({"containers": [main]})


def _artifact(**metadata: str) -> Spec:
    kind = {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"}
    return {"artifacts": [{"name": "9999", "type": kind, "uri": ADDRESS, "metadata": metadata}]}


def _in_node(value: str) -> str:
    """Returns a value as a parameter of a node."""
    return _json({"name": "pod-spec-patch", "value": value})


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
