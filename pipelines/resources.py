"""Applies a `Placement` to a task: where its step runs. No other module knows Kubernetes."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from kfp import dsl, kubernetes

from posttrain.config import ATTEMPTS_ENV, RUN_ID_ENV, Attempts
from posttrain.config.placement import QUEUE_LABEL, SECRETS_FOLDER, Placement

RUN_ID_LABEL = "metadata.labels['pipeline/runid']"  # its placeholder resolves only as a whole parameter value
# Argo counts it from the start of the first attempt, including all attempts and waits for nodes: after kfp's default of
# an hour nothing is retried, and a running attempt is ended (kubeflow/pipelines#13452).
RETRY_WINDOW = "30d"
CACHE_FOLDER = "/cache/huggingface"  # HF_HOME in the images


def place(task: dsl.PipelineTask, placement: Placement, *, attempts: Attempts, pod_minutes: int) -> None:
    """Sets what a task's pod needs, where it may run, for how long and how often, and which secrets it gets.

    The container makes `attempts` itself, within `pod_minutes`. If the whole container ends, the backend may start it
    again as often.
    """
    # kfp's cache key has the ids of artifacts, not their contents. The steps reuse results by content themselves.
    task.set_caching_options(False)
    kubernetes.set_security_context(task, run_as_non_root=True)
    kubernetes.set_timeout(task, pod_minutes * 60)
    if attempts.number > 1:
        backoff = f"{placement.retry_backoff_seconds}s"
        task.set_retry(
            attempts.number - 1, backoff_duration=backoff, backoff_factor=2, backoff_max_duration=RETRY_WINDOW
        )
    with _callers_by_name_alone():
        task.set_env_variable(ATTEMPTS_ENV, str(attempts))
        _limit(task, placement)
        _set_environment(task, placement)
    _schedule(task, placement)
    _label(task, placement)
    _pull(task, placement)


@contextmanager
def _callers_by_name_alone() -> Iterator[None]:
    """Keeps kfp's setters from reading source files.

    Each asks `inspect.stack()` for its caller's name, which by default reads five lines of source around every frame:
    three quarters of the time of a compile.
    """
    stack = inspect.stack
    inspect.stack = partial(stack, context=0)
    try:
        yield
    finally:
        inspect.stack = stack


def _limit(task: dsl.PipelineTask, placement: Placement) -> None:
    task.set_cpu_request(placement.cpu).set_cpu_limit(placement.cpu)
    task.set_memory_request(placement.memory).set_memory_limit(placement.memory)
    if placement.accelerator_count:  # one without the other is silently dropped
        task.set_accelerator_type(placement.accelerator_type).set_accelerator_limit(placement.accelerator_count)
    if placement.shm_size:
        kubernetes.empty_dir_mount(
            task, volume_name="dshm", mount_path="/dev/shm", medium="Memory", size_limit=placement.shm_size
        )


def _schedule(task: dsl.PipelineTask, placement: Placement) -> None:
    for key, value in placement.node_selector.items():
        kubernetes.add_node_selector(task, label_key=key, label_value=value)
    for term in placement.node_affinity:
        requirements = [requirement.model_dump() for requirement in term.match]
        kubernetes.add_node_affinity(task, match_expressions=requirements, weight=term.weight)
    for toleration in placement.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump())


def _label(task: dsl.PipelineTask, placement: Placement) -> None:
    queue = {QUEUE_LABEL: placement.queue} if placement.queue else {}
    for key, value in (placement.pod_labels | queue).items():
        kubernetes.add_pod_label(task, label_key=key, label_value=value)
    for key, value in placement.pod_annotations.items():
        kubernetes.add_pod_annotation(task, annotation_key=key, annotation_value=value)


def _pull(task: dsl.PipelineTask, placement: Placement) -> None:
    if placement.image_pull_policy:
        kubernetes.set_image_pull_policy(task, placement.image_pull_policy)
    if placement.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, placement.image_pull_secrets)


def _set_environment(task: dsl.PipelineTask, placement: Placement) -> None:
    """Sets variables. A pod whose secret is missing would never start, and nobody would say why: preflight does."""
    kubernetes.use_field_path_as_env(task, env_name=RUN_ID_ENV, field_path=RUN_ID_LABEL)
    for name, value in placement.env.items():
        task.set_env_variable(name, value)
    for entry in placement.config_maps:
        kubernetes.use_config_map_as_env(
            task, config_map_name=entry.config_map, config_map_key_to_env={entry.key: entry.env}, optional=True
        )
    for secret in placement.secrets:
        if secret.as_file:
            task.set_env_variable(secret.env, f"{SECRETS_FOLDER}/{secret.secret}/{secret.key}")
        else:
            kubernetes.use_secret_as_env(
                task, secret_name=secret.secret, secret_key_to_env={secret.key: secret.env}, optional=True
            )
    for name in dict.fromkeys(secret.secret for secret in placement.secrets if secret.as_file):
        kubernetes.use_secret_as_volume(task, secret_name=name, mount_path=f"{SECRETS_FOLDER}/{name}", optional=True)
    if placement.model_cache:
        kubernetes.mount_pvc(task, pvc_name=placement.model_cache, mount_path=CACHE_FOLDER)
