"""An FP8 folder has each linear layer rounded to E4M3 with a scale for each row, and all else as it was."""

import json

import numpy as np
import pytest

from posttrain.serving import fp8
from posttrain.weights.targets import Layout
from tests import architectures


def test_values_are_rounded_as_torch_rounds_them():
    import torch

    generator = np.random.default_rng(0)
    spread = [generator.normal(size=5_000) * scale for scale in (1e-3, 1e-2, 1.0, 100.0)]
    middles = (fp8.levels()[1:] + fp8.levels()[:-1]) / 2
    values = np.clip(np.concatenate([*spread, fp8.levels(), middles, -middles]), -448, 448).astype(np.float32)
    wanted = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert (fp8.rounded(values) == wanted).all()


def test_a_folder_holds_the_model_within_the_rounding(tmp_path, tiny_model):
    from safetensors.torch import load_file

    fp8.write(tiny_model, tmp_path / "fp8")
    before, after = load_file(tiny_model / "model.safetensors"), load_file(tmp_path / "fp8" / "model.safetensors")
    linear = {f"{name}.weight" for name in Layout.of(tiny_model).linear}
    assert len(linear) == 14
    for name, weight in before.items():
        if name not in linear:
            assert after[name].equal(weight)
            continue
        scale = after[name.replace("weight", "weight_scale")]
        back, weight = after[name].float() * scale, weight.float()
        error = (back - weight).abs() - weight.abs() / 16 - scale * 2**-10  # half a step of 3 bits, or of the smallest
        assert error.max() <= 1e-7
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert (tmp_path / "fp8" / "tokenizer.json").read_bytes() == (tiny_model / "tokenizer.json").read_bytes()


def test_experts_are_refused(tmp_path):
    model = architectures.build("qwen3_moe", tmp_path / "model")
    with pytest.raises(ValueError, match="has experts"):
        fp8.check(Layout.of(model))
