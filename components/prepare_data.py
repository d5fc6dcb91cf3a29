"""prepare_data: splits a data set by prompt into training and evaluation rows; with their references where answers to
the training rows are judged too.
"""

from kfp.dsl import Artifact, Dataset, Output, container_component

from components.container import container, without


@container_component
def prepare_data_with_references(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    dataset: str,
    kind: str,
    train: Output[Dataset],
    eval: Output[Dataset],
    references: Output[Dataset],
    statistics: Output[Artifact],
    manifest: Output[Artifact],
):
    """Splits rows as `prepare_data` does; the accepted answers of the training rows are a file of their own."""
    return container("posttrain.data", "cpu", **locals())


@without(prepare_data_with_references, "references")
def prepare_data():
    """Reads rows in one of TRL's formats (`kind`: sft or preference) and splits them by the hash of the prompt."""
