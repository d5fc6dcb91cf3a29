"""The section `placement` of the configuration: where steps run and what they may use there.

Values that Kubernetes would refuse, or silently take for something else, are refused when the configuration is loaded:
in the cluster they would cost a run.
"""

import re
from collections import Counter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_serializer, model_validator

from posttrain.config import masking
from posttrain.config.line import STEPS, TRAININGS, no_such_step, step_of
from posttrain.config.section import Count, Section

BACKEND_ENV = "POSTTRAIN_BACKEND"  # unsloth or peft
SHORTCUTS_ENV = "POSTTRAIN_SHORTCUTS"  # shortcuts of training that may be taken: see posttrain.train.fast.chosen
TOKEN_ENV = "HF_TOKEN"
UPLOAD_TOKEN_ENV = "HF_UPLOAD_TOKEN"  # the HF_TOKEN of publish_model, for preflight to check
ADDED = ("env", "secrets", "config_maps", "pod_labels", "pod_annotations")  # a step adds to those of its pool
SECRETS_FOLDER = "/etc/posttrain"  # where secrets are mounted as files
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# Narrower than what is masked, which may be too much: TOKENIZERS_PARALLELISM is no secret.
SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(API|ACCESS|PRIVATE)_?KEY)(_|$)")


def _written_as(pattern: str, what: str, remedy: str, *, numbers: bool = False) -> BeforeValidator:
    """Validates that a value is text of this form; with `numbers`, a number counts as the text it was written as."""

    def check(value: Any) -> str:
        if numbers and type(value) in (int, float):
            value = str(value)
        if not isinstance(value, str):
            shown = str(value).lower() if isinstance(value, bool) else str(value)[:80]
            raise ValueError(f'{shown} is not text: write it in quotes, "{shown}"')
        if masking.TOKENS.search(value):
            raise ValueError("is a secret itself: put it into a Kubernetes secret, and name that under `secrets`")
        if not re.fullmatch(pattern, value, re.DOTALL):
            raise ValueError(f"{value[:80]!r} is not {what}: {remedy}")
        return value

    return BeforeValidator(check)


NAME = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"  # of a label, without its prefix; also the form of its value
DOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"

Cores = Annotated[
    str, _written_as(r"(?=.*[1-9])(\d*\.)?\d+m?", "a number of cores", 'give "8" or "500m"', numbers=True)
]
Bytes = Annotated[
    str, _written_as("[1-9][0-9]*(Ki|[MGTPE]i?)", "a size with its unit", "give 16Gi or 512Mi", numbers=True)
]
LabelKey = Annotated[str, _written_as(f"({DOMAIN}/)?{NAME}", "a label key", "give name or domain.org/name")]
LabelValue = Annotated[
    str, _written_as(f"({NAME})?", "a label value", "use at most 63 letters, digits, '-', '_' and '.'")
]
ResourceName = Annotated[str, _written_as(f"{DOMAIN}/{NAME}", "a resource name", "give nvidia.com/gpu or the like")]
ObjectName = Annotated[
    str, _written_as(f"(?=.{{1,253}}$){DOMAIN}", "a Kubernetes name", "use lower-case letters, digits, '-' and '.'")
]
VolumeName = Annotated[
    str, _written_as("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", "a volume name", "use lower-case letters, digits and '-'")
]
DataKey = Annotated[str, _written_as("[-._A-Za-z0-9]+", "a key in a secret", "use letters, digits, '-', '_' and '.'")]
EnvName = Annotated[str, _written_as("[A-Za-z_][A-Za-z0-9_]*", "a variable name", "use letters, digits and '_'")]
PlainText = Annotated[str, _written_as(r"((?!\{\{).)*", "plain text", "remove '{{', which the backend would expand")]


BYTES = {"": 1, **{unit: 1000**at for at, unit in enumerate("KMGTPE", start=1)}}
BYTES |= {f"{unit}i": 1024**at for at, unit in enumerate("KMGTPE", start=1)}


def num_bytes(quantity: str) -> int:
    """Returns the bytes of a Kubernetes quantity such as 16Gi."""
    match = re.fullmatch(r"(\d+)([A-Za-z]*)", quantity)
    if not match or match[2] not in BYTES:
        raise ValueError(f"{quantity!r} is not a quantity; give one like 16Gi")
    return int(match[1]) * BYTES[match[2]]


class SecretEnv(Section):
    """An environment variable that comes from a Kubernetes secret."""

    env: EnvName  # variable
    secret: ObjectName  # name of the Kubernetes secret
    key: DataKey  # key in the secret
    as_file: bool = False  # the variable is the path of a file with the value, like GOOGLE_APPLICATION_CREDENTIALS

    @model_validator(mode="before")
    @classmethod
    def _is_no_value(cls, raw):
        if isinstance(raw, dict) and "value" in raw:
            raise ValueError("holds a value: put it into a Kubernetes secret, and give `secret` and `key` instead")
        return raw

    @property
    def source(self) -> str:
        return f"secret {self.secret}, key {self.key}"

    @model_validator(mode="after")
    def _names_a_volume(self):
        if self.as_file and "." in self.secret:
            raise ValueError(f"secret {self.secret!r} is mounted as a volume, whose name cannot contain '.': rename it")
        return self


class OwnSecret(Section):
    """A value that a section takes from a Kubernetes secret, or, without one, from a variable that is set already."""

    env: ClassVar[str]  # variable with the value, or with the path of a file that has it
    as_file: ClassVar[bool] = False

    secret: ObjectName | None = None  # name of the Kubernetes secret; null: the variable is set
    key: DataKey | None = None  # key in the secret

    @model_validator(mode="after")
    def _names_a_key_in_a_secret(self):
        if (self.secret is None) != (self.key is None):
            raise ValueError(f"secret {self.secret!r}, key {self.key!r}: give both, or neither")
        return self

    @property
    def secrets(self) -> list[SecretEnv]:
        """The variable, if it comes from a secret."""
        if self.secret is None:
            return []
        return [SecretEnv(env=self.env, secret=self.secret, key=self.key, as_file=self.as_file)]


class ConfigMapEnv(Section):
    """An environment variable that comes from a Kubernetes config map."""

    env: EnvName  # variable
    config_map: ObjectName  # name of the config map
    key: DataKey  # key in the config map

    @property
    def source(self) -> str:
        return f"config map {self.config_map}, key {self.key}"


class Toleration(Section):
    """A taint of nodes that the pod tolerates."""

    key: LabelKey | None = None  # key of the taint; null, with operator Exists: any
    operator: Literal["Equal", "Exists"] = "Equal"  # Equal compares key and value, Exists only the key
    value: LabelValue | None = None  # value of the taint
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None  # effect of the taint; null: any
    # seconds before a NoExecute taint evicts the pod; null: never
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _matches_some_taint(self):
        if self.operator == "Exists" and self.value:
            raise ValueError(f"operator Exists takes no value, but has {self.value!r}: remove it, or give Equal")
        if self.operator == "Equal" and not (self.key and self.value):
            raise ValueError("operator Equal compares key and value: give both, or operator: Exists for any value")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("toleration_seconds works with effect NoExecute only: give that effect, or remove it")
        return self


class NodeRequirement(Section):
    """A condition on a label of a node."""

    key: LabelKey  # label of the node
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]  # how its value is compared
    values: list[LabelValue] = []  # values to compare with; none for Exists and DoesNotExist

    @model_validator(mode="after")
    def _has_its_values(self):
        none, number = ("Exists", "DoesNotExist"), ("Gt", "Lt")
        if self.operator in none and self.values:
            raise ValueError(f"operator {self.operator} takes no values, but has {self.values}: remove them")
        if self.operator in number and not (len(self.values) == 1 and self.values[0].isdecimal()):
            raise ValueError(f"operator {self.operator} with values {self.values}: give one whole number in quotes")
        if self.operator not in none and not self.values:
            raise ValueError(f"operator {self.operator} has no values: list those that the label may have")
        return self


class NodeAffinity(Section):
    """Nodes whose labels meet all requirements of `match`."""

    match: Annotated[list[NodeRequirement], Field(min_length=1)]  # requirements, all of which must hold
    # preference by weight; null: one of the terms without a weight must match
    weight: Annotated[int, Field(ge=1, le=100)] | None = None


class Placement(Section):
    """The place where a step runs, and its resources, variables, secrets and limits there."""

    cpu: Cores = "4"  # cores; request and limit
    memory: Bytes = "16Gi"  # size with its unit; request and limit
    accelerator_type: ResourceName = "nvidia.com/gpu"  # resource name of the GPUs
    accelerator_count: Annotated[int, Field(ge=0)] = 0  # number of GPUs per pod
    shm_size: Bytes | None = None  # size of /dev/shm, for data loaders and NCCL; counts as memory
    node_selector: dict[LabelKey, LabelValue] = {}  # node label -> value
    node_affinity: list[NodeAffinity] = []  # terms of required node labels; a term with a weight is a preference
    tolerations: list[Toleration] = []  # taints of nodes that the pod tolerates
    queue: LabelValue | None = None  # local queue of Kueue
    pod_labels: dict[LabelKey, LabelValue] = {}  # label -> value
    pod_annotations: dict[LabelKey, PlainText] = {}  # annotation -> text
    timeout_minutes: Count | None = None  # minutes for one attempt; null: the stage's
    retry_count: Annotated[int, Field(ge=0)] | None = None  # further attempts; null: the stage's
    retry_backoff_seconds: Count = 30  # seconds before the second attempt after a storage outage; then doubled
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None  # null: Kubernetes' own default
    image_pull_secrets: list[ObjectName] = []  # names of the Kubernetes secrets for private registries
    env: dict[EnvName, PlainText] = {}  # variable -> value; not for secrets
    secrets: list[SecretEnv] = []  # variables taken from Kubernetes secrets
    config_maps: list[ConfigMapEnv] = []  # variables taken from Kubernetes config maps
    model_cache: VolumeName | None = None  # PersistentVolumeClaim for HF_HOME, so that downloads outlive the run
    # pods that train one model together, each with these resources; above 1: as a TrainJob of Kubeflow Trainer
    nodes: Count = 1
    training_runtime: ObjectName = "posttrain"  # TrainingRuntime for several nodes, in the namespace of the runs
    queue_minutes: Count = 720  # minutes that one attempt on several nodes may wait for all of them

    @model_validator(mode="after")
    def _names_each_thing_once(self):
        if QUEUE_LABEL in self.pod_labels:
            raise ValueError(f"pod_labels: {QUEUE_LABEL} is set by `queue`: give it there")
        for name, value in self.env.items():
            if SECRET_NAME.search(name) and not value.startswith("/"):
                remedy = "put it into a Kubernetes secret, and name that under `secrets`"
                raise ValueError(f"env.{name} is a secret in plain text: {remedy}")
        return self


class GpuPlacement(Placement):
    """A placement with the defaults of a step that wants a GPU."""

    cpu: Cores = "8"
    memory: Bytes = "48Gi"
    accelerator_count: Annotated[int, Field(ge=0)] = 1
    shm_size: Bytes | None = "16Gi"


class Placements(Section):
    """Placement by pool, and overrides for single steps."""

    cpu: Placement = Placement()
    gpu: GpuPlacement = GpuPlacement()
    # step -> keys that override its pool's; env, secrets, config_maps, pod_labels and pod_annotations are added to them
    steps: dict[str, Placement] = {}

    @field_serializer("steps")
    def _only_what_changes(self, steps):
        return {name: placement.model_dump(exclude_unset=True) for name, placement in steps.items()}

    @model_validator(mode="after")
    def _suits_the_steps(self):
        for name in self.steps:
            if name not in STEPS:
                raise ValueError(f"steps.{name}: {no_such_step(name)}")
            if STEPS[name].kind == "trial" and "accelerator_count" in self.steps[name].model_fields_set:
                remedy = "give it for " + " and ".join(TRAININGS)
                raise ValueError(f"steps.{name}.accelerator_count: trials have the GPUs of their training: {remedy}")
        steps = {f"steps.{name}": self.of(name) for name in self.steps}
        for key, placement in ({"cpu": self.cpu, "gpu": self.gpu} | steps).items():
            _check_accelerators(key, placement)
            _check_nodes(key, placement)
            _check_environment(key, placement)
        return self

    def of(self, step: str, *, like: str | None = None) -> Placement:
        """Returns the placement of a step: that of its pool, or of the step it is placed like, with its own keys."""
        row = step_of(step)
        like = like or row.placed_like
        base = self.of(like) if like else self.gpu if row.pool == "gpu" else self.cpu
        own = self.own(step)
        return base.model_copy(update={name: _changed(base, own, name) for name in own.model_fields_set})

    def num_ranks(self, step: str) -> int:
        """Returns how many processes a training has, one for each GPU of all its nodes."""
        placement = self.of(step)
        return placement.nodes * max(1, placement.accelerator_count)

    @property
    def all(self) -> list[Placement]:
        """The placements of the pools and of single steps."""
        return [self.cpu, self.gpu, *self.steps.values()]

    def own(self, step: str) -> Placement:
        """Returns what the configuration says of this step alone."""
        return self.steps.get(step_of(step).name, Placement())


def _changed(base: Placement, own: Placement, name: str) -> Any:
    before, now = getattr(base, name), getattr(own, name)
    if name not in ADDED:
        return now
    if isinstance(now, dict):
        return before | now
    variables = {entry.env for entry in now}
    return [*(entry for entry in before if entry.env not in variables), *now]


def _check_accelerators(key: str, placement: Placement) -> None:
    """Refuses GPUs that a pod could not use; `key` is `cpu`, `gpu` or `steps.<name>`."""
    step, count = key.removeprefix("steps."), placement.accelerator_count
    loads_model = step == "gpu" or (step in STEPS and STEPS[step].loads_model)
    if count > 0 and not loads_model:
        raise ValueError(f"{key}.accelerator_count = {count}: no model is loaded there: remove it")
    if count > 1 and step not in TRAININGS:
        remedy = "give it under placement.steps, for " + " and ".join(TRAININGS)
        raise ValueError(f"{key}.accelerator_count = {count}: only training uses several GPUs: {remedy}")
    if count > 1 and placement.env.get(BACKEND_ENV) == "unsloth":
        reason = f"env.{BACKEND_ENV} is unsloth, which trains on one GPU; peft trains on several"
        raise ValueError(f"{key}.accelerator_count = {count}: {reason}: use one GPU, or remove the variable")


def _check_nodes(key: str, placement: Placement) -> None:
    """Refuses several nodes for what cannot share its work among them."""
    if placement.nodes == 1:
        return
    if key.removeprefix("steps.") not in TRAININGS:
        remedy = "give it under placement.steps, for " + " and ".join(TRAININGS)
        raise ValueError(f"{key}.nodes = {placement.nodes}: only training uses several nodes: {remedy}")
    if placement.env.get(BACKEND_ENV) == "unsloth":
        reason = f"env.{BACKEND_ENV} is unsloth, which trains on one GPU; peft trains on several"
        raise ValueError(f"{key}.nodes = {placement.nodes}: {reason}: use one node, or remove the variable")


def _check_environment(key: str, placement: Placement) -> None:
    named = [*placement.env, *(entry.env for entry in [*placement.secrets, *placement.config_maps])]
    twice = [name for name, count in Counter(named).items() if count > 1]
    if twice:
        raise ValueError(f"{key}: variable {twice[0]} is set twice in env, secrets and config_maps: remove one")
