"""Settings of the stages that exclude each other."""

import pytest

from posttrain.config import load_config


def test_a_base_in_four_bits_is_not_sharded(files):
    with pytest.raises(ValueError, match=r"sft: load_in_4bit with parallelism fsdp is not supported.*use ddp"):
        load_config(files / "pipeline.yaml", ["sft.load_in_4bit=true", "sft.parallelism=fsdp"])
