"""Where steps run and what they may use there: the section `placement` of the configuration.

What Kubernetes would refuse, or silently take for something else, is refused when the configuration is loaded: in the
cluster it would cost a run.
"""

import re
from collections import Counter
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_serializer, model_validator

from posttrain.config import masking
from posttrain.config.section import Count, Section

CPU_STEPS = (
    "preflight", "fetch_model", "prepare_sft_data", "prepare_preferences", "check_data", "check_sft_data",
    "check_preference_data", "merge_sft", "check_sft_merge", "merge_dpo", "check_dpo_merge", "publish_model",
    "report_run",
)  # fmt: skip
TRAINING_STEPS = ("train_sft", "train_dpo")
GPU_STEPS = (*TRAINING_STEPS, "check_sft", "check_safety", "check_alignment")
MODEL_STEPS = (*GPU_STEPS, "check_sft_merge", "check_dpo_merge")  # have torch in their image: a GPU is of use to them

BACKEND_ENV = "POSTTRAIN_BACKEND"  # unsloth or peft
TOKEN_ENV = "HF_TOKEN"
UPLOAD_TOKEN_ENV = "HF_UPLOAD_TOKEN"  # what publish_model has as HF_TOKEN, for preflight to look at
ADDED = ("env", "secrets", "config_maps", "pod_labels", "pod_annotations")  # by a step to what its pool has
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# Narrower than what is masked, which may be too much: TOKENIZERS_PARALLELISM is no secret.
SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(API|ACCESS|PRIVATE)_?KEY)(_|$)")


def _written_as(pattern: str, what: str, remedy: str, *, numbers: bool = False) -> BeforeValidator:
    """A text of this form; with `numbers`, a number counts as the text it was written as."""

    def check(value: Any) -> str:
        if numbers and type(value) in (int, float):
            value = str(value)
        if not isinstance(value, str):
            shown = str(value).lower() if isinstance(value, bool) else str(value)[:80]
            raise ValueError(f'{shown} is no text: write it in quotes, "{shown}"')
        if masking.TOKENS.search(value):
            raise ValueError("is a secret itself: put it into a Kubernetes secret, and name that under `secrets`")
        if not re.fullmatch(pattern, value, re.DOTALL):
            raise ValueError(f"{value[:80]!r} is no {what}: {remedy}")
        return value

    return BeforeValidator(check)


NAME = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"  # of a label, without its prefix; also the form of its value
DOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"

Cores = Annotated[str, _written_as(r"(?=.*[1-9])(\d*\.)?\d+m?", "number of cores", 'give "8" or "500m"', numbers=True)]
Bytes = Annotated[
    str, _written_as("[1-9][0-9]*(Ki|[MGTPE]i?)", "size with its unit", "give 16Gi or 512Mi", numbers=True)
]
LabelKey = Annotated[str, _written_as(f"({DOMAIN}/)?{NAME}", "label key", "give name or domain.org/name")]
LabelValue = Annotated[
    str, _written_as(f"({NAME})?", "label value", "use at most 63 letters, digits, '-', '_' and '.'")
]
ResourceName = Annotated[str, _written_as(f"{DOMAIN}/{NAME}", "resource", "give nvidia.com/gpu or the like")]
ObjectName = Annotated[
    str, _written_as(f"(?=.{{1,253}}$){DOMAIN}", "name in Kubernetes", "use lower-case letters, digits, '-' and '.'")
]
VolumeName = Annotated[
    str, _written_as("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", "name of a volume", "use lower-case letters, digits and '-'")
]
DataKey = Annotated[str, _written_as("[-._A-Za-z0-9]+", "key in a secret", "use letters, digits, '-', '_' and '.'")]
EnvName = Annotated[str, _written_as("[A-Za-z_][A-Za-z0-9_]*", "name of a variable", "use letters, digits and '_'")]
PlainText = Annotated[str, _written_as(r"((?!\{\{).)*", "plain text", "remove '{{', which the backend would expand")]


class SecretEnv(Section):
    """An environment variable that comes from a Kubernetes secret."""

    env: EnvName
    secret: ObjectName
    key: DataKey
    as_file: bool = False  # the variable is the path of a file with the value, as GOOGLE_APPLICATION_CREDENTIALS is

    @model_validator(mode="before")
    @classmethod
    def _is_no_value(cls, raw):
        if isinstance(raw, dict) and "value" in raw:
            raise ValueError("holds a value: put it into a Kubernetes secret, and give `secret` and `key` instead")
        return raw

    @model_validator(mode="after")
    def _names_a_volume(self):
        if self.as_file and "." in self.secret:
            raise ValueError(f"secret {self.secret!r} is to be a volume, whose name holds no '.': give it another name")
        return self


class ConfigMapEnv(Section):
    """An environment variable that comes from a Kubernetes config map."""

    env: EnvName
    config_map: ObjectName
    key: DataKey


class Toleration(Section):
    """A taint of nodes on which the pod may run all the same."""

    key: LabelKey | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _matches_some_taint(self):
        if self.operator == "Exists" and self.value:
            raise ValueError(f"operator Exists compares no value, but it is {self.value!r}: remove it, or give Equal")
        if self.operator == "Equal" and not (self.key and self.value):
            raise ValueError("operator Equal compares key and value: give both, or operator: Exists for any value")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("toleration_seconds counts with effect NoExecute only: give that effect, or remove it")
        return self


class NodeRequirement(Section):
    """What a label of a node must be."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: list[LabelValue] = []

    @model_validator(mode="after")
    def _has_its_values(self):
        none, number = ("Exists", "DoesNotExist"), ("Gt", "Lt")
        if self.operator in none and self.values:
            raise ValueError(f"operator {self.operator} compares no values, but they are {self.values}: remove them")
        if self.operator in number and not (len(self.values) == 1 and self.values[0].isdecimal()):
            raise ValueError(f"operator {self.operator} with values {self.values}: give one whole number in quotes")
        if self.operator not in none and not self.values:
            raise ValueError(f"operator {self.operator} has no values: give those that the label may have")
        return self


class NodeAffinity(Section):
    """Nodes whose labels meet all requirements of `match`."""

    match: Annotated[list[NodeRequirement], Field(min_length=1)]
    weight: Annotated[int, Field(ge=1, le=100)] | None = None  # wished, by weight; null: one term without it must match


class Placement(Section):
    """Where a step runs and what it may use there."""

    cpu: Cores = "4"  # cores; request and limit
    memory: Bytes = "16Gi"  # size with its unit; request and limit
    accelerator_type: ResourceName = "nvidia.com/gpu"  # resource name
    accelerator_count: Annotated[int, Field(ge=0)] = 0  # GPUs of the pod
    shm_size: Bytes | None = None  # size of /dev/shm, for data loaders and NCCL; counts as memory
    node_selector: dict[LabelKey, LabelValue] = {}  # node label -> value
    node_affinity: list[NodeAffinity] = []  # terms: match (key, operator, values); with weight only wished
    tolerations: list[Toleration] = []  # Kubernetes tolerations: key, operator, value, effect, toleration_seconds
    queue: LabelValue | None = None  # Kueue's local queue
    pod_labels: dict[LabelKey, LabelValue] = {}  # label -> value
    pod_annotations: dict[LabelKey, PlainText] = {}  # annotation -> text
    timeout_minutes: Count | None = None  # minutes, of one attempt; null: that of the stage
    retry_count: Annotated[int, Field(ge=0)] | None = None  # further attempts; null: that of the stage
    retry_backoff_seconds: Count = 30  # seconds before the first further attempt; doubled before each next
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None  # null: Kubernetes decides
    image_pull_secrets: list[ObjectName] = []  # names of Kubernetes secrets
    env: dict[EnvName, PlainText] = {}  # variable -> value; not for secrets
    secrets: list[SecretEnv] = []  # env from a Kubernetes secret's key; as_file: env is the path of a file with it
    config_maps: list[ConfigMapEnv] = []  # env from a config map's key
    model_cache: VolumeName | None = None  # PersistentVolumeClaim for HF_HOME, so that downloads outlive the run

    @model_validator(mode="after")
    def _names_each_thing_once(self):
        if QUEUE_LABEL in self.pod_labels:
            raise ValueError(f"pod_labels: {QUEUE_LABEL} is what `queue` sets: give it there")
        for name, value in self.env.items():
            if SECRET_NAME.search(name) and not value.startswith("/"):
                remedy = "put it into a Kubernetes secret, and name that under `secrets`"
                raise ValueError(f"env.{name} is a secret, and given literally: {remedy}")
        return self


class GpuPlacement(Placement):
    """The same with the defaults of a step that wants a GPU."""

    cpu: Cores = "8"
    memory: Bytes = "48Gi"
    accelerator_count: Annotated[int, Field(ge=0)] = 1
    shm_size: Bytes | None = "16Gi"


class Placements(Section):
    """Placement by pool, and what single steps change of their pool's."""

    cpu: Placement = Placement()
    gpu: GpuPlacement = GpuPlacement()
    steps: dict[str, Placement] = {}  # step -> keys in place of its pool's; to env, secrets, config_maps, pod_* added

    @field_serializer("steps")
    def _only_what_changes(self, steps):
        return {name: placement.model_dump(exclude_unset=True) for name, placement in steps.items()}

    @model_validator(mode="after")
    def _suits_the_steps(self):
        for name in self.steps:
            if name not in CPU_STEPS + GPU_STEPS:
                near = get_close_matches(name, CPU_STEPS + GPU_STEPS, n=1)
                known = f"did you mean {near[0]}?" if near else f"known are: {', '.join(CPU_STEPS + GPU_STEPS)}"
                raise ValueError(f"steps.{name}: no such step; {known}")
        steps = {f"steps.{name}": self.of(name) for name in self.steps}
        for key, placement in ({"cpu": self.cpu, "gpu": self.gpu} | steps).items():
            _check_accelerators(key, placement)
            _check_environment(key, placement)
        return self

    def of(self, step: str) -> Placement:
        """The placement of a step. What preflight looks at it must see as fetch_model will: same node, same secrets."""
        pool = self.of("fetch_model") if step == "preflight" else self.gpu if step in GPU_STEPS else self.cpu
        own = self.steps.get(step, Placement())
        return pool.model_copy(update={name: _changed(pool, own, name) for name in own.model_fields_set})


def _changed(pool: Placement, own: Placement, name: str) -> Any:
    before, now = getattr(pool, name), getattr(own, name)
    if name not in ADDED:
        return now
    if isinstance(now, dict):
        return before | now
    variables = {entry.env for entry in now}
    return [*(entry for entry in before if entry.env not in variables), *now]


def _check_accelerators(key: str, placement: Placement) -> None:
    """`key` is `cpu`, `gpu` or `steps.<name>`."""
    step, count = key.removeprefix("steps."), placement.accelerator_count
    if count > 0 and step != "gpu" and step not in MODEL_STEPS:
        raise ValueError(f"{key}.accelerator_count = {count}: no model is loaded there: take it out")
    if count > 1 and step not in TRAINING_STEPS:
        remedy = "give it under placement.steps, for " + " and ".join(TRAINING_STEPS)
        raise ValueError(f"{key}.accelerator_count = {count}: only training uses several GPUs: {remedy}")
    if count > 1 and placement.env.get(BACKEND_ENV) == "unsloth":
        reason = f"env.{BACKEND_ENV} is unsloth, which trains on one GPU; peft trains on several"
        raise ValueError(f"{key}.accelerator_count = {count}: {reason}: take one GPU, or leave the variable out")


def _check_environment(key: str, placement: Placement) -> None:
    named = [*placement.env, *(entry.env for entry in [*placement.secrets, *placement.config_maps])]
    twice = [name for name, count in Counter(named).items() if count > 1]
    if twice:
        raise ValueError(f"{key}: variable {twice[0]} is set twice in env, secrets and config_maps: remove one")
