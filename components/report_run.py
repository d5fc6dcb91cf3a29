"""report_run: the exit task."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Output, container_component

from components.container import container


@container_component
def report_run(
    step: str,
    storage_root: str,
    config: dict,
    status: dsl.PipelineTaskFinalStatus,
    result: Output[Artifact],
    report: Output[HTML],
):
    """Writes pipeline_result.json and the HTML report from the run record, however the run ended."""
    return container("posttrain.report", "cpu", **locals())
