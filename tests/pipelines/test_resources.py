"""Placements in the package, as container and pod; and the clusters under configs/."""

import re
from pathlib import Path

import pytest
import yaml
from kfp import compiler, dsl

from pipelines.compiler import compile_graph
from pipelines.resources import CACHE_FOLDER, place
from posttrain.config import Attempts, PipelineConfig, load_config
from posttrain.config.placement import Placement
from tests.pipelines.graph import Graph

EVERYTHING = {
    "cpu": "500m",
    "memory": "2Gi",
    "accelerator_type": "amd.com/gpu",
    "accelerator_count": 2,
    "shm_size": "1Gi",
    "node_selector": {"pool": "gpu"},
    "node_affinity": [
        {"match": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]},
        {"match": [{"key": "spot", "operator": "DoesNotExist"}], "weight": 7},
    ],
    "tolerations": [
        {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "team", "value": "ml", "effect": "NoExecute", "toleration_seconds": 60},
    ],
    "queue": "ml",
    "pod_labels": {"team": "ml"},
    "pod_annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
    "retry_backoff_seconds": 5,
    "image_pull_policy": "Always",
    "image_pull_secrets": ["registry"],
    "env": {"NCCL_DEBUG": "WARN"},
    "secrets": [
        {"env": "HF_TOKEN", "secret": "hub", "key": "token"},
        {"env": "GOOGLE_APPLICATION_CREDENTIALS", "secret": "gcs", "key": "key.json", "as_file": True},
        {"env": "OTHER", "secret": "gcs", "key": "other.json", "as_file": True},
    ],
    "config_maps": [{"env": "AWS_ENDPOINT_URL", "config_map": "minio", "key": "endpoint"}],
    "model_cache": "models",
}


@dsl.container_component
def work():
    return dsl.ContainerSpec(image="image", command=["true"])


def placed(tmp_path: Path, placement: dict, **limits) -> dict:
    """The only task of a graph: under `task`, `container` and `kubernetes` what the package says of it."""

    @dsl.pipeline(name="one")
    def one():
        task = work().set_display_name("work")
        place(task, Placement.model_validate(placement), **({"attempts": Attempts(), "pod_minutes": 3} | limits))

    compiler.Compiler().compile(one, str(tmp_path / "one.yaml"))
    return Graph(tmp_path / "one.yaml").tasks["work"]


def test_all_of_a_placement_reaches_the_package(tmp_path):
    task = placed(tmp_path, EVERYTHING, attempts=Attempts(5, 60, 5))
    resources, pod = task["container"]["resources"], task["kubernetes"]
    assert (resources["resourceCpuLimit"], resources["resourceCpuRequest"]) == ("500m", "500m")
    assert (resources["resourceMemoryLimit"], resources["resourceMemoryRequest"]) == ("2Gi", "2Gi")
    accelerator = resources["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("amd.com/gpu", "2")
    assert pod["emptyDirMounts"] == [
        {"volumeName": "dshm", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "1Gi"}
    ]
    assert pod["nodeSelector"] == {"labels": {"pool": "gpu"}}
    assert pod["nodeAffinity"] == [
        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]},
        {"matchExpressions": [{"key": "spot", "operator": "DoesNotExist"}], "weight": 7},
    ]
    assert pod["tolerations"] == [
        {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "team", "operator": "Equal", "value": "ml", "effect": "NoExecute", "tolerationSeconds": "60"},
    ]
    assert pod["podMetadata"] == {
        "labels": {"team": "ml", "kueue.x-k8s.io/queue-name": "ml"},
        "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
    }
    assert pod["imagePullPolicy"] == "Always"
    assert [secret["secretName"] for secret in pod["imagePullSecret"]] == ["registry"]
    assert pod["activeDeadlineSeconds"] == "180"
    assert pod["securityContext"] == {"runAsNonRoot": True}
    assert [(mount["constant"], mount["mountPath"]) for mount in pod["pvcMount"]] == [("models", CACHE_FOLDER)]


def test_variables_come_from_secrets_and_config_maps(tmp_path):
    task = placed(tmp_path, EVERYTHING)
    pod = task["kubernetes"]
    assert {variable["name"]: variable["value"] for variable in task["container"]["env"]} == {
        "NCCL_DEBUG": "WARN",
        "POSTTRAIN_ATTEMPTS": "1 0 0",
        "GOOGLE_APPLICATION_CREDENTIALS": "/etc/posttrain/gcs/key.json",
        "OTHER": "/etc/posttrain/gcs/other.json",
    }
    (secret,) = pod["secretAsEnv"]
    assert (secret["secretName"], secret["keyToEnv"]) == ("hub", [{"secretKey": "token", "envVar": "HF_TOKEN"}])
    (volume,) = pod["secretAsVolume"]  # two files of one secret
    assert (volume["secretName"], volume["mountPath"]) == ("gcs", "/etc/posttrain/gcs")
    (config_map,) = pod["configMapAsEnv"]
    assert config_map["configMapName"] == "minio"
    assert config_map["keyToEnv"] == [{"configMapKey": "endpoint", "envVar": "AWS_ENDPOINT_URL"}]


def test_a_step_that_may_be_tried_again_may_be_so_after_hours(tmp_path):
    """Argo counts the window from the start of the first attempt (kubeflow/pipelines#13452)."""
    policy = placed(tmp_path, EVERYTHING, attempts=Attempts(5, 60, 5))["task"]["retryPolicy"]
    assert (policy["maxRetryCount"], policy["backoffDuration"], policy["backoffFactor"]) == (4, "5s", 2.0)
    assert int(policy["backoffMaxDuration"].removesuffix("s")) > 5 * 24 * 3600
    assert "retryPolicy" not in placed(tmp_path, {})["task"]


def test_a_placement_of_defaults_asks_for_nothing_special(tmp_path):
    task = placed(tmp_path, {})
    assert task["kubernetes"].keys() == {"activeDeadlineSeconds", "fieldPathAsEnv", "securityContext"}
    assert "accelerator" not in task["container"]["resources"]


@pytest.mark.parametrize("dockerfile", ["Dockerfile.train", "images/Dockerfile.cpu"])
def test_the_model_cache_is_where_the_images_look_for_it(dockerfile):
    assert f"HF_HOME={CACHE_FOLDER} " in Path(dockerfile).read_text()


SPOT = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
GPU = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
# Cluster -> of train_sft: node selector, tolerations, GPUs, memory, further attempts.
CLUSTERS = {
    "gke-l4-spot": ({"cloud.google.com/gke-accelerator": "nvidia-l4"}, [GPU, SPOT], "1", "48Gi", 3),
    "gke-a100-spot": ({"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}, [GPU, SPOT], "1", "64Gi", 3),
    "gke-h100-spot": ({"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}, [GPU, SPOT], "2", "360Gi", 3),
    "eks": ({"karpenter.sh/capacity-type": "spot"}, [GPU], "1", "48Gi", 3),
    "bare-metal": ({"nvidia.com/gpu.product": "NVIDIA-L40S"}, [GPU], "1", "96Gi", 2),
}


@pytest.fixture(scope="module")
def clusters(tmp_path_factory) -> dict[str, Graph]:
    """The package of each cluster."""
    folder, result = tmp_path_factory.mktemp("clusters"), {}
    for name in CLUSTERS:
        config = load_config(["configs/pipeline_config.yaml", f"configs/clusters/{name}.yaml"])
        compile_graph(config, folder / f"{name}.yaml")
        result[name] = Graph(folder / f"{name}.yaml")
    return result


def test_every_cluster_is_tested():
    assert {file.stem for file in Path("configs/clusters").iterdir()} == CLUSTERS.keys() | {"gke-h100-nodes"}


def test_the_cluster_with_several_nodes_trains_on_them(tmp_path):
    config = load_config(["configs/pipeline_config.yaml", "configs/clusters/gke-h100-nodes.yaml"])
    compile_graph(config, tmp_path / "graph.yaml")
    graph = Graph(tmp_path / "graph.yaml")
    for step in ("train_sft", "train_dpo"):
        assert "accelerator" not in graph.tasks[step]["container"]["resources"]
        workers, settings = graph.config_of(step)["workers"], graph.config_of(step)
        assert (workers["num_nodes"], workers["placement"]["queue"]) == (2, "ml-training")
        assert (workers["placement"]["accelerator_count"], settings["training"]["num_processes"]) == (8, 16)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_training_runs_on_the_clusters_gpu_nodes(clusters, cluster):
    selector, tolerations, num_gpus, memory, retries = CLUSTERS[cluster]
    for step, minutes in (("train_sft", 180), ("train_dpo", 120)):
        task = clusters[cluster].tasks[step]
        resources, pod = task["container"]["resources"], task["kubernetes"]
        spot = {"cloud.google.com/gke-spot": "true"} if cluster.startswith("gke-") else {}
        assert pod["nodeSelector"]["labels"] == selector | spot
        assert pod["tolerations"] == tolerations
        assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
        assert resources["accelerator"]["resourceCount"] == num_gpus
        assert (resources["resourceMemoryLimit"], resources["resourceMemoryRequest"]) == (memory, memory)
        assert task["task"]["retryPolicy"]["maxRetryCount"] == retries
        assert clusters[cluster].attempts_of(step)[:2] == (1 + retries, (minutes + 10) * 60)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_gates_take_one_gpu_and_the_other_steps_none(clusters, cluster):
    tasks = clusters[cluster].tasks
    for step in ("check_sft", "check_alignment"):
        assert tasks[step]["container"]["resources"]["accelerator"]["resourceCount"] == "1"
        assert tasks[step]["kubernetes"]["nodeSelector"] == tasks["train_sft"]["kubernetes"]["nodeSelector"]
    for step in ("preflight", "fetch_model", "merge_sft", "check_sft_merge", "publish_model", "reject_sft"):
        assert "accelerator" not in tasks[step]["container"]["resources"]
        assert "nodeSelector" not in tasks[step]["kubernetes"]
    assert "retryPolicy" not in tasks["reject_sft"]["task"]


@pytest.mark.parametrize("cluster", ["eks", "bare-metal"])
def test_addresses_are_those_of_the_clusters_storage(cluster):
    config = load_config(["configs/pipeline_config.yaml", f"configs/clusters/{cluster}.yaml"])
    assert "gs://" not in yaml.safe_dump(config.model_dump(mode="json"))


def test_eks_takes_one_of_several_instances(clusters):
    needed, wished = clusters["eks"].tasks["train_sft"]["kubernetes"]["nodeAffinity"]
    assert needed["matchExpressions"][0]["key"] == "node.kubernetes.io/instance-type"
    assert wished["weight"] == 50


def test_bare_metal_has_registry_queue_cache_and_minio(clusters):
    tasks = clusters["bare-metal"].tasks
    for name, task in tasks.items():
        variables = {key["envVar"] for secret in task["kubernetes"]["secretAsEnv"] for key in secret["keyToEnv"]}
        assert variables >= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}, name
        assert task["kubernetes"]["imagePullSecret"][0]["secretName"] == "registry", name
        assert ("pvcMount" in task["kubernetes"]) == (name in ("preflight", "fetch_model")), name
        queued = "kueue.x-k8s.io/queue-name" in task["kubernetes"]["podMetadata"]["labels"]
        assert queued == ("accelerator" in task["container"]["resources"]), name


def test_the_signing_key_is_a_file_of_the_pods_that_need_it_and_of_no_other(tmp_path):
    sections = {"signing": {"secret": "model-signing", "key": "private.pem"}}
    config = load_config("configs/pipeline_config.yaml", ["signing={secret: model-signing, key: private.pem}"])
    compile_graph(config, tmp_path / "graph.yaml")
    graph = Graph(tmp_path / "graph.yaml")
    mounted = {
        name: task["kubernetes"].get("secretAsVolume", []) for name, task in graph.tasks.items() if task["kubernetes"]
    }
    assert {name for name, volumes in mounted.items() if volumes} == {"preflight", "publish_model"}
    assert {"name": "POSTTRAIN_SIGNING_KEY", "value": "/etc/posttrain/model-signing/private.pem"} in graph.tasks[
        "publish_model"
    ]["container"]["env"]
    local = PipelineConfig(**sections).unplaced()
    assert local.secrets_of("publish_model") == []
    assert local.variables_of("publish_model") == ["POSTTRAIN_SIGNING_KEY"]
    assert local.variables_of("train_sft") == local.variables_of("report_run") == []
    with pytest.raises(ValueError, match="give both, or neither"):
        PipelineConfig(signing={"secret": "model-signing"})


@pytest.mark.parametrize(
    ("at", "tell"), [("stop, end", "reject_.*|report_run"), ("stop", "reject_.*"), ("end", "report_run")]
)
def test_those_that_tell_a_webhook_and_preflight_have_its_url_and_are_told_so(at, tell, tmp_path):
    settings = [f"notify={{secret: slack, key: url, at: [{at}]}}"]
    compile_graph(load_config("configs/pipeline_config.yaml", settings), tmp_path / "graph.yaml")
    graph = Graph(tmp_path / "graph.yaml")
    secrets = {
        name: [secret["keyToEnv"][0]["envVar"] for secret in (task["kubernetes"] or {}).get("secretAsEnv", [])]
        for name, task in graph.tasks.items()
    }
    named = {name for name, variables in secrets.items() if "POSTTRAIN_WEBHOOK_URL" in variables}
    assert named == {name for name in secrets if re.fullmatch(f"{tell}|preflight", name)}
    told = named - {"preflight"}
    assert {name: (graph.config_of(name)["notify"], graph.config_of(name)["pipeline_id"]) for name in told} == (
        dict.fromkeys(told, (True, "task-api-v1.0"))
    )
