"""export_model: writes the judged model in the formats of serving engines."""

from kfp.dsl import Input, Model, Output, container_component

from components.container import container


@container_component
def export_model(
    step: str,
    storage_root: str,
    config: dict,
    model: Input[Model],
    export: Output[Model],
):
    """Writes the model as GGUF for llama.cpp and in FP8 for vLLM, in the formats of the configuration."""
    return container("posttrain.serving.export", "cpu", **locals())
