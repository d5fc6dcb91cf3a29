"""The estimate of memory grows with what takes memory, and preflight warns by it before a GPU is asked for."""

import pytest

from posttrain.config import DpoConfig, PreflightStep, SftConfig
from posttrain.config.cards import memory_gb
from posttrain.config.placement import GpuPlacement, NodeAffinity, NodeRequirement
from posttrain.preflight import memory_warnings
from posttrain.train import memory

QWEN_7B = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
SHAPE = memory.Shape.of(QWEN_7B)


def total_gb(config=None, **settings) -> float:
    checkpointing = settings.pop("checkpointing", True)
    num_ranks = settings.pop("num_ranks", 1)
    config = config or SftConfig(**settings)
    return memory.estimate(SHAPE, config, num_ranks=num_ranks, checkpointing=checkpointing).total / 1e9


def test_the_weights_are_those_of_the_model():
    assert SHAPE.num_in_layers + SHAPE.num_around_layers == pytest.approx(7.615e9, rel=1e-3)  # as the Hub says
    estimate = memory.estimate(SHAPE, SftConfig(), checkpointing=True)
    assert estimate.weights == pytest.approx(15.23e9, rel=1e-3)
    assert estimate.adapter / 16 == pytest.approx(40.37e6, rel=1e-3)  # as peft counts them


def test_each_setting_that_takes_memory_counts():
    plain = total_gb()
    assert total_gb(checkpointing=False) > 3 * plain
    assert total_gb(load_in_4bit=True) < plain - 9
    assert total_gb(batch_size=8) > plain + 5 and total_gb(max_seq_length=4096) > plain + 5
    assert total_gb(lora_r=256) > plain + 5
    assert total_gb(checkpointing=False, lora_dropout=0.0) < 0.8 * total_gb(checkpointing=False)
    assert total_gb(parallelism="fsdp", num_ranks=4) < plain - 10
    assert total_gb(num_ranks=4) == plain
    assert total_gb(DpoConfig(batch_size=4)) > total_gb(DpoConfig(batch_size=2)) > total_gb(DpoConfig(batch_size=1))


def test_models_of_other_kinds_have_no_estimate():
    assert memory.Shape.of(QWEN_7B | {"num_experts": 8}) is None
    assert memory.Shape.of({"model_type": "mamba"}) is None


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}, 80),
        ({"cloud.google.com/gke-accelerator": "nvidia-tesla-a100", "pool": "gpu"}, 40),
        ({"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"}, 80),
        ({"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"}, 40),
        ({"nvidia.com/gpu.product": "NVIDIA-L40S"}, 48),
        ({"cloud.google.com/gke-accelerator": "nvidia-l4"}, 24),
        ({"nvidia.com/gpu.product": "NVIDIA-H200"}, 141),
        ({"nvidia.com/gpu.memory": "81559"}, 85.5),
        ({"pool": "gpu"}, None),
        ({}, None),
    ],
)
def test_a_card_is_known_by_its_label(labels, expected):
    assert memory_gb(GpuPlacement(node_selector=labels)) == (expected and pytest.approx(expected, abs=0.1))


def test_of_several_machines_the_smallest_card_counts():
    def affinity(*types: str, weight: int | None = None) -> NodeAffinity:
        key = "node.kubernetes.io/instance-type"
        return NodeAffinity(match=[NodeRequirement(key=key, operator="In", values=list(types))], weight=weight)

    assert memory_gb(GpuPlacement(node_affinity=[affinity("g6.4xlarge", "p5.48xlarge")])) == 24
    assert memory_gb(GpuPlacement(node_affinity=[affinity("g6e.4xlarge")])) == 48
    assert memory_gb(GpuPlacement(node_affinity=[affinity("p5.48xlarge", "m7i.large")])) is None
    assert memory_gb(GpuPlacement(node_affinity=[affinity("g6.4xlarge", weight=5)])) is None  # no more than a wish
    assert memory_gb(GpuPlacement(accelerator_count=0, node_selector={"a": "nvidia-l4"})) is None


def test_preflight_warns_of_a_training_that_will_not_fit(tmp_path):
    import json

    (tmp_path / "config.json").write_text(json.dumps(QWEN_7B))
    gpus = {"num_gpus": {"train_sft": 1, "train_dpo": 1}, "gpu_memory_fraction": 0.9}
    step = PreflightStep(gpu_memory_gb={"train_sft": 24, "train_dpo": 80}, **gpus)
    (warning,) = memory_warnings(step, str(tmp_path))
    assert warning.startswith("train_sft: it will take about 26 GB of a GPU's 24 GB (weights 15.2, adapter 0.6, ")
    assert warning.endswith(
        ": lower sft.batch_size (now 4) or max_seq_length (now 2048), set sft.load_in_4bit, or choose a larger GPU"
    )
    assert not memory_warnings(PreflightStep(gpu_memory_gb={"train_sft": 80}, **gpus), str(tmp_path))
    assert not memory_warnings(PreflightStep(**gpus), "/nowhere")


def test_the_table_of_the_documents_is_today_s():
    from docs import memory as table

    assert table.PAGE.read_text(encoding="utf-8") == table.page(), "run: make golden"
