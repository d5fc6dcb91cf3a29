"""Every kernel gives a packed token the states it has in its row alone, and block masks are those of all tokens."""

import itertools
import sys
from subprocess import CalledProcessError
from types import ModuleType

import pytest
import torch
import transformers
from torch.nn.attention.flex_attention import create_mask
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from posttrain.train import backend
from posttrain.train.fast import attention, packing, same
from posttrain.train.fast.attention import BLOCK_SIZE, Layout, Visible
from tests.posttrain.train.fast.test_packing import model_of

LAYOUTS = {
    "rows": Layout([150, 3, 300, 1, 60], [(0, 0)] * 5),
    "pairs": Layout([400, 260], [(100, 250), (10, 200)]),
    "rows with one beginning": Layout([140, 200, 30, 128], [(0, 0)] * 4, num_shared=140),
    "pairs with one beginning": Layout([5, 300, 290, 7], [(0, 0), (20, 160), (129, 258), (0, 0)], num_shared=5),
    "less than a block": Layout([9], [(3, 6)]),
    "whole blocks": Layout([256, 128], [(128, 192), (0, 0)]),
}


def visible_keys(layout: Layout) -> torch.Tensor:
    """The mask [tokens, tokens] by what the rows say, one query at a time."""
    starts = [0, *itertools.accumulate(layout.row_lengths)]
    mask = torch.zeros(starts[-1], starts[-1], dtype=torch.bool)
    for start, length, (gap_start, gap_end) in zip(starts, layout.row_lengths, layout.gaps, strict=False):
        for query in range(length):
            mask[start + query, : layout.num_shared] = query + start >= layout.num_shared
            mask[start + query, start : start + query + 1] = True
            if gap_start < gap_end <= query:
                mask[start + query, start + gap_start : start + gap_end] = False
    return mask


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_flex_attention_sees_and_skips_what_the_rows_say(layout):
    expected = visible_keys(layout)
    visible = Visible.of(layout, "cpu")
    assert torch.equal(create_mask(visible.mask_mod(), None, None, *expected.shape, device="cpu")[0, 0], expected)
    missing = -len(expected) % BLOCK_SIZE
    queries = torch.nn.functional.pad(expected, (0, 0, 0, missing), value=True)
    blocks = torch.nn.functional.pad(queries, (0, missing), value=False).unflatten(0, (-1, BLOCK_SIZE))
    of_blocks = blocks.unflatten(2, (-1, BLOCK_SIZE))  # [blocks, queries, blocks, keys]
    some, whole = visible._blocks()
    assert not (of_blocks.any(dim=3).any(dim=1) & ~some)[: len(expected) // BLOCK_SIZE].any()
    assert not (whole & ~of_blocks.all(dim=3).all(dim=1)).any()


def test_blocks_of_other_rows_and_of_the_other_answer_are_skipped():
    some, whole = Visible.of(Layout([256, 128], [(0, 0)] * 2), "cpu")._blocks()
    assert some.int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]] and whole.int().tolist() == [
        [0, 0, 0],
        [1, 0, 0],
        [0, 0, 0],
    ]
    some, whole = Visible.of(Layout([512], [(128, 384)]), "cpu")._blocks()  # prompt, two of chosen, one of rejected
    assert some.int().tolist()[3] == [1, 0, 0, 1] and whole.int().tolist()[3] == [1, 0, 0, 0]


def reference_varlen(query, key, value, bounds, _, longest, *others, window_size, scale, enable_gqa=False):
    """Computes what varlen_attn does on a GPU, row by row."""
    assert window_size == (-1, 0) and longest >= bounds.diff().max()
    rows = []
    for start, end in itertools.pairwise(bounds.tolist()):
        row = [part[start:end].transpose(0, 1)[None] for part in (query, key, value)]
        out = torch.nn.functional.scaled_dot_product_attention(*row, is_causal=True, scale=scale, enable_gqa=True)
        rows.append(out[0].transpose(0, 1))
    return torch.cat(rows)


def reference_flex(module, query, key, value, block_mask, **settings):
    """Computes what FlexAttention does on a GPU, with a mask of all tokens by all; on a CPU it has no gradients."""
    mask = create_mask(block_mask.mask_mod, None, None, query.shape[2], query.shape[2], device="cpu")
    return sdpa_attention_forward(module, query, key, value, mask, **settings)


def take_kernel(monkeypatch, kernel: str) -> None:
    """Has packed batches computed as on a GPU with this kernel."""
    monkeypatch.setattr(attention, "kernels", lambda config: [kernel])
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference_varlen)
    monkeypatch.setattr("transformers.integrations.flex_attention.flex_attention_forward", reference_flex)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["varlen", "flex"])
def test_a_model_is_switched_to_a_kernel_that_sees_the_same(monkeypatch, kernel, dtype):
    take_kernel(monkeypatch, kernel)
    assert packing.turn_on(model_of("Qwen2").to(dtype), pairs=False) == kernel
    assert packing.turn_on(model_of("Qwen2").to(dtype), pairs=True) == (None if kernel == "varlen" else kernel)


@pytest.mark.parametrize("kernel", ["varlen", "flex"])
def test_a_kernel_that_lets_rows_see_each_other_is_left_out(monkeypatch, caplog, kernel):
    take_kernel(monkeypatch, kernel)

    def leaks(module, query, key, value, *bounds, **settings):
        return sdpa_attention_forward(module, query, key, value, None, is_causal=True)

    def leaks_too(query, key, value, bounds, *others, scale, **settings):
        return reference_varlen(query, key, value, bounds[[0, -1]], None, 10**9, window_size=(-1, 0), scale=scale)

    monkeypatch.setattr("transformers.integrations.flex_attention.flex_attention_forward", leaks)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", leaks_too)
    for dtype in (torch.float32, torch.bfloat16):
        model = model_of("Qwen2").to(dtype)
        assert packing.turn_on(model, pairs=False) is None
        assert model.config._attn_implementation == "sdpa"
        assert f"{kernel} is left out: logits differ by" in caplog.text


def test_the_trial_is_of_the_first_layers():
    """Over many layers in 16 bit, rounding alone may differ by more than the tolerance."""
    model = model_of("Qwen2", num_hidden_layers=5)
    calls = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *args: calls.append(args[0]))
    assert packing.turn_on(model, pairs=False) == "rows"
    assert len(calls) == 2 * same.NUM_LAYERS and model.config.num_hidden_layers == 5


def test_only_16_bits_of_a_new_gpu_get_its_kernels(monkeypatch):
    config = transformers.LlamaConfig()
    assert attention.kernels(config) == ["rows"]
    monkeypatch.setattr(backend, "current", lambda: backend.Backend(library="peft", device="cuda", dtype="bfloat16"))
    monkeypatch.setattr(attention, "can_compile", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert attention.kernels(config) == ["varlen", "flex", "rows"]
    monkeypatch.setattr(attention, "can_compile", lambda: False)
    assert attention.kernels(config) == ["varlen", "rows"]
    assert attention.kernels(transformers.LlamaConfig(attention_dropout=0.1)) == ["rows"]
    assert attention.kernels(transformers.LlamaConfig(head_dim=512)) == ["rows"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert attention.kernels(config) == ["rows"]


def test_rows_of_one_length_are_a_batch_where_that_is_asked_for(monkeypatch):
    monkeypatch.setenv("POSTTRAIN_SHORTCUTS", "varlen,dense")
    take_kernel(monkeypatch, "varlen")
    batch = torch.randint(1, 60, (3, 40))
    whole, unlike = Layout([40] * 3, [(0, 0)] * 3), Layout([40, 39], [(0, 0)] * 2)
    assert whole.inputs("varlen", "cpu") == {"num_rows": 3}
    assert unlike.inputs("varlen", "cpu").keys() == {"row_bounds", "longest_row"}
    model = model_of("Qwen2")
    assert packing.turn_on(model, pairs=False) == "varlen"
    monkeypatch.delattr("torch.nn.attention.varlen.varlen_attn")
    packed = packing.pack_rows(batch, torch.ones_like(batch), torch.ones_like(batch), kernel="varlen")
    with torch.no_grad():
        expected = model(input_ids=batch, attention_mask=torch.ones_like(batch)).logits.flatten(end_dim=1)
        assert torch.allclose(model(**packed.model_inputs(batch)).logits[0], expected, atol=1e-6)


def test_triton_is_asked_whether_it_can_compile(monkeypatch, caplog):
    """Where its headers and its compiler lie is for Triton to know."""

    class Driver:
        @property
        def active(self):
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    runtime = ModuleType("triton.runtime")
    runtime.driver = Driver()
    for name, module in {"triton": ModuleType("triton"), "triton.runtime": runtime}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(attention, "find_spec", lambda name: name == "triton")
    for answer in (object(), RuntimeError("Failed to find C compiler"), CalledProcessError(1, ["gcc"])):
        runtime.driver.answer = answer
        attention.can_compile.cache_clear()
        assert attention.can_compile() == (not isinstance(answer, Exception))
    attention.can_compile.cache_clear()
    assert "Triton cannot compile here: Failed to find C compiler" in caplog.text
