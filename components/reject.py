"""reject: ends the run as FAILED with the verdict that did not pass; reject_and_tell: and a webhook is told."""

from kfp.dsl import Artifact, Input, container_component

from components.container import container


@container_component
def reject(step: str, storage_root: str, verdict: Input[Artifact]):
    """Prints the failed checks and exits 1: a branch that is merely skipped would leave the run green."""
    return container("posttrain.reject", "cpu", **locals())


@container_component
def reject_and_tell(step: str, storage_root: str, config: dict, verdict: Input[Artifact]):
    """Tells a webhook which checks did not pass, and rejects."""
    return container("posttrain.reject", "cpu", **locals())
