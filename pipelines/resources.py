"""Where a step runs: a `Placement` applied to a task. The only module that knows Kubernetes."""

from kfp import dsl, kubernetes

from posttrain.config import RUN_ID_ENV, Placement

RUN_ID_LABEL = "metadata.labels['pipeline/runid']"  # a placeholder for it resolves only as a whole parameter value


def place(task: dsl.PipelineTask, placement: Placement, *, timeout_minutes: int, retry_count: int) -> None:
    """Sets cpu, memory, accelerator, node, time limit, retries, secrets and the run's id on a task."""
    task.set_caching_options(
        False
    )  # kfp's cache key knows artifact ids, not contents; stages reuse by content themselves
    task.set_cpu_request(placement.cpu).set_cpu_limit(placement.cpu)
    task.set_memory_request(placement.memory).set_memory_limit(placement.memory)
    if retry_count:
        task.set_retry(retry_count, backoff_duration="30s", backoff_factor=2)
    kubernetes.set_timeout(task, timeout_minutes * 60)
    kubernetes.use_field_path_as_env(task, env_name=RUN_ID_ENV, field_path=RUN_ID_LABEL)
    _accelerate(task, placement)
    _schedule(task, placement)
    for secret in placement.secrets:
        kubernetes.use_secret_as_env(task, secret_name=secret.secret, secret_key_to_env={secret.key: secret.env})


def _accelerate(task: dsl.PipelineTask, placement: Placement) -> None:
    if placement.accelerator_count:  # one without the other is dropped in silence
        task.set_accelerator_type(placement.accelerator_type).set_accelerator_limit(placement.accelerator_count)
    if placement.shm_size:
        kubernetes.empty_dir_mount(
            task, volume_name="dshm", mount_path="/dev/shm", medium="Memory", size_limit=placement.shm_size
        )


def _schedule(task: dsl.PipelineTask, placement: Placement) -> None:
    for key, value in placement.node_selector.items():
        kubernetes.add_node_selector(task, label_key=key, label_value=value)
    for toleration in placement.tolerations:
        kubernetes.add_toleration(task, **toleration)
    if placement.queue:
        kubernetes.add_pod_label(task, label_key="kueue.x-k8s.io/queue-name", label_value=placement.queue)
