"""Where steps run: pools, what steps change, and what Kubernetes would refuse or misread."""

import pytest
import yaml
from pydantic import ValidationError

from posttrain.config import PipelineConfig, load_config
from posttrain.config.placement import Placement, Placements

TOKEN = "hf_" + "aB3" * 12


def placed(**values) -> Placements:
    return Placements.model_validate(values)


def test_a_step_is_placed_as_its_pool_unless_it_says_otherwise():
    placements = placed(
        cpu={"cpu": 2},
        gpu={"memory": "40Gi", "node_selector": {"pool": "l4"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
        steps={"train_sft": {"memory": "80Gi", "node_selector": {"pool": "a100"}}},
    )
    assert (placements.of("merge_sft").cpu, placements.of("reject_data").cpu) == ("2", "2")
    assert (placements.of("check_sft").memory, placements.of("check_sft").node_selector) == ("40Gi", {"pool": "l4"})
    train = placements.of("train_sft")
    assert (train.memory, train.node_selector, train.accelerator_count) == ("80Gi", {"pool": "a100"}, 1)
    assert train.tolerations == placements.gpu.tolerations


def test_variables_and_labels_of_a_step_come_to_those_of_its_pool():
    """A step that needs a token as well still reaches its storage."""
    storage = {"env": "AWS_SECRET_ACCESS_KEY", "secret": "minio", "key": "secret-key"}
    token = {"env": "HF_TOKEN", "secret": "hub", "key": "token"}
    placements = placed(
        cpu={"secrets": [storage], "env": {"A": "pool", "B": "pool"}, "pod_labels": {"team": "ml"}},
        steps={"fetch_model": {"secrets": [token], "env": {"B": "step"}, "pod_labels": {"step": "fetch"}}},
    )
    fetch = placements.of("fetch_model")
    assert [secret.env for secret in fetch.secrets] == ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN"]
    assert fetch.env == {"A": "pool", "B": "step"}
    assert fetch.pod_labels == {"team": "ml", "step": "fetch"}


def test_a_step_may_take_another_secret_for_a_variable_of_its_pool():
    reader, writer = ({"env": "HF_TOKEN", "secret": name, "key": "token"} for name in ("hub-reader", "hub-writer"))
    placements = placed(cpu={"secrets": [reader]}, steps={"publish_model": {"secrets": [writer]}})
    assert [secret.secret for secret in placements.of("publish_model").secrets] == ["hub-writer"]
    assert [secret.secret for secret in placements.of("fetch_model").secrets] == ["hub-reader"]


def test_preflight_sees_what_fetch_model_will_see():
    token = {"env": "HF_TOKEN", "secret": "hub", "key": "token"}
    steps = {"fetch_model": {"secrets": [token], "model_cache": "models"}, "preflight": {"cpu": "1"}}
    placements = placed(steps=steps)
    preflight = placements.of("preflight")
    assert (preflight.cpu, preflight.model_cache) == ("1", "models")
    assert preflight.secrets == placements.of("fetch_model").secrets


def test_only_what_a_step_changes_survives_yaml():
    config = PipelineConfig(placement=placed(steps={"train_sft": {"memory": "80Gi"}}))
    again = PipelineConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
    assert again.placement.of("train_sft") == config.placement.of("train_sft")
    assert again.placement.of("train_sft").shm_size == "16Gi"


REFUSED = {
    "memory without a unit": ("gpu.memory=48", "gpu.memory: '48' is not a size with its unit: give 16Gi or 512Mi"),
    "memory in another unit": ("gpu.memory=48GB", "gpu.memory: '48GB' is not a size with its unit"),
    "no memory": ("gpu.memory=0Gi", "gpu.memory: '0Gi' is not a size"),
    "no cores": ("cpu.cpu=0", "cpu.cpu: '0' is not a number of cores: give \"8\" or \"500m\""),
    "shared memory": ("gpu.shm_size=lots", "gpu.shm_size: 'lots' is not a size"),
    "resource": ("gpu.accelerator_type=gpu", "gpu.accelerator_type: 'gpu' is not a resource name: give nvidia.com/gpu"),
    "label that is a truth": ("gpu.node_selector={a/gke-spot: true}", 'true is not text: write it in quotes, "true"'),
    "label that is a number": ("gpu.node_selector={gpus: 8}", 'gpu.node_selector.gpus: 8 is not text: write it in q'),
    "label key": ("gpu.node_selector={'a key': b}", "'a key' is not a label key"),
    "label value": ("cpu.pod_labels={a: b c}", "cpu.pod_labels.a: 'b c' is not a label value"),
    "annotation": ("cpu.pod_annotations={a: '{{workflow.name}}'}", "is not plain text: remove '{{'"),
    "queue": ("gpu.queue=my queue", "gpu.queue: 'my queue' is not a label value"),
    "queue twice": ("gpu.pod_labels={kueue.x-k8s.io/queue-name: a}", "is set by `queue`: give it there"),
    "pull policy": ("cpu.image_pull_policy=Sometimes", "cpu.image_pull_policy = 'Sometimes': Input should be 'Always'"),
    "claim": ("cpu.model_cache=Model Cache", "cpu.model_cache: 'Model Cache' is not a volume name"),
    "secret's name": ("cpu.secrets=[{env: A, secret: B_C, key: d}]", "secrets.0.secret: 'B_C' is not a Kubernetes"),
    "secret's key": ("cpu.secrets=[{env: A, secret: b, key: a/b}]", "secrets.0.key: 'a/b' is not a key in a secret"),
    "file of a secret": ("cpu.secrets=[{env: A, secret: b.c, key: d, as_file: true}]", "whose name cannot contain '.'"),
    "variable": ("cpu.env={a-b: c}", "'a-b' is not a variable name"),
    "variable twice": (
        "cpu={env: {A: b}, config_maps: [{env: A, config_map: c, key: d}]}",
        "cpu: variable A is set twice in env, secrets and config_maps: remove one",
    ),
    "toleration of no value": (
        "gpu.tolerations=[{key: nvidia.com/gpu, effect: NoSchedule}]",
        "tolerations.0: operator Equal compares key and value: give both, or operator: Exists",
    ),
    "toleration of any value": ("gpu.tolerations=[{key: a, operator: Exists, value: b}]", "takes no value, but has"),
    "toleration in seconds": (
        "gpu.tolerations=[{key: a, operator: Exists, effect: NoSchedule, toleration_seconds: 9}]",
        "toleration_seconds works with effect NoExecute only",
    ),
    "key of a toleration": (
        "gpu.tolerations=[{key: a, operator: Exists, tolerationSeconds: 9}]",
        "tolerations.0.tolerationSeconds: unknown key; did you mean toleration_seconds?",
    ),
    "affinity to nothing": ("gpu.node_affinity=[{match: []}]", "gpu.node_affinity.0.match"),
    "affinity without values": ("gpu.node_affinity=[{match: [{key: a, operator: In}]}]", "operator In has no values"),
    "affinity with values": (
        "gpu.node_affinity=[{match: [{key: a, operator: Exists, values: [b]}]}]",
        "operator Exists takes no values, but has ['b']: remove them",
    ),
    "affinity to a number": (
        "gpu.node_affinity=[{match: [{key: a, operator: Gt, values: [b]}]}]",
        "operator Gt with values ['b']: give one whole number in quotes",
    ),
    "weight": (
        "gpu.node_affinity=[{match: [{key: a, operator: Exists}], weight: 101}]", "gpu.node_affinity.0.weight = '101'",
    ),
    "step": ("steps.train_sf.cpu=4", "steps.train_sf: no such step; did you mean train_sft?"),
    "step of a sweep": ("steps.hold_out.cpu=4", "steps.hold_out: no such step; did you mean hold_out_sft?"),
    "one trial of many": ("steps.trial_1.cpu=4", "steps.trial_1: no such step; did you mean trials?"),
    "GPUs of trials": (
        "steps.trials.accelerator_count=2",
        "trials have the GPUs of their training: give it for train_sft and train_dpo",
    ),
    "key of a step": ("steps.train_sft.memry=4Gi", "steps.train_sft.memry: unknown key; did you mean memory?"),
    "GPUs of a gate": (
        "gpu.accelerator_count=2",
        "gpu.accelerator_count = 2: only training uses several GPUs: give it under placement.steps, for train_sft",
    ),
    "GPUs of one gate": ("steps.check_sft.accelerator_count=2", "only training uses several GPUs"),
    "GPU without a model": ("steps.fetch_model.accelerator_count=1", "no model is loaded there: remove it"),
    "GPU of the cpu pool": ("cpu.accelerator_count=1", "cpu.accelerator_count = 1: no model is loaded there"),
    "GPUs of unsloth": (
        "steps.train_dpo={accelerator_count: 2, env: {POSTTRAIN_BACKEND: unsloth}}",
        "steps.train_dpo.accelerator_count = 2: env.POSTTRAIN_BACKEND is unsloth, which trains on one GPU",
    ),
    "nodes of a gate": (
        "steps.check_sft.nodes=2",
        "steps.check_sft.nodes = 2: only training uses several nodes: give it under placement.steps, for train_sft",
    ),
    "nodes of a pool": ("gpu.nodes=2", "gpu.nodes = 2: only training uses several nodes"),
    "nodes of trials": ("steps.trials.nodes=2", "steps.trials.nodes = 2: only training uses several nodes"),
    "nodes of unsloth": (
        "steps.train_dpo={nodes: 2, env: {POSTTRAIN_BACKEND: unsloth}}",
        "steps.train_dpo.nodes = 2: env.POSTTRAIN_BACKEND is unsloth",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("setting", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_makes_no_sense_is_one_line_when_the_configuration_is_loaded(setting, words):
    with pytest.raises(ValueError) as caught:
        load_config("configs/pipeline_config.yaml", [f"placement.{setting}"])
    assert "placement" in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "setting",
    [
        f"cpu.secrets=[{{env: HF_TOKEN, value: {TOKEN}}}]",
        f"cpu.secrets=[{{env: HF_TOKEN, secret: {TOKEN}, key: token}}]",
        f"cpu.secrets=[{TOKEN}]",
        f"cpu.secrets={TOKEN}",
        f"cpu.env={{NAME: {TOKEN}}}",
        f"cpu.env={{WANDB_API_KEY: {TOKEN[3:]}}}",
        f"cpu.pod_annotations={{note: {TOKEN}}}",
    ],
)
def test_a_secret_that_is_given_literally_is_refused_and_not_repeated(setting):
    with pytest.raises(ValueError, match=r"placement\.cpu") as caught:
        load_config("configs/pipeline_config.yaml", [f"placement.{setting}"])
    assert TOKEN[3:] not in str(caught.value)


def test_what_only_looks_like_a_secret_is_taken():
    env = {"GOOGLE_APPLICATION_CREDENTIALS": "/etc/key.json", "TOKENIZERS_PARALLELISM": "false"}
    assert Placement(env=env).env == env


@pytest.mark.parametrize(
    ("key", "value"),
    [("cpu", 8), ("cpu", 0.5), ("cpu", "500m"), ("memory", "512Mi"), ("memory", "64G"), ("model_cache", "hf-cache")],
)
def test_what_kubernetes_takes_is_taken(key, value):
    assert getattr(Placement.model_validate({key: value}), key) == str(value)


def test_several_gpus_are_for_training_and_one_is_for_the_merge_gates():
    steps = {"train_sft": {"accelerator_count": 4}, "check_sft_merge": {"accelerator_count": 1}}
    placements = placed(steps=steps)
    assert placements.of("train_sft").accelerator_count == 4
    assert placements.of("train_dpo").accelerator_count == 1


def test_a_placement_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        Placement().cpu = "8"


def test_the_gpus_of_all_nodes_share_the_micro_batches():
    nodes = ["placement.steps.train_sft={nodes: 2, accelerator_count: 2}"]
    with pytest.raises(ValueError, match=r"sft.gradient_accumulation = 6 cannot be shared by 4 GPUs"):
        load_config("configs/pipeline_config.yaml", [*nodes, "sft.gradient_accumulation=6"])
    placements = load_config("configs/pipeline_config.yaml", [*nodes, "sft.gradient_accumulation=8"]).placement
    assert (placements.num_ranks("train_sft"), placements.num_ranks("train_dpo")) == (4, 1)
