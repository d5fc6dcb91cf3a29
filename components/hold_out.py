"""hold_out: splits held-out rows into those that choose among trials and those that judge the winner."""

from kfp.dsl import Dataset, Input, Output, container_component

from components.container import container


@container_component
def hold_out(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    eval: Input[Dataset],
    selection: Output[Dataset],
    unseen: Output[Dataset],
):
    """Splits held-out rows by the hash of the prompt."""
    return container("posttrain.sweep.hold_out", "cpu", **locals())
