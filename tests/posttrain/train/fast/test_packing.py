"""A model computes from packed batches what it computes from padded ones, or is left with padding."""

import pytest
import torch
import transformers

from posttrain.train.fast import packing

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def model_of(name: str, **settings) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SHAPE | settings)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Mistral", "Phi3", "Gemma", "Olmo2", "SmolLM3", "Granite"])
def test_a_row_or_pair_computed_at_once_has_the_states_of_each_alone(name):
    model = model_of(name, sliding_window=None)
    prompt, chosen, rejected = [5, 6, 7], [8, 9], [10, 11, 12]
    ids = torch.tensor([[*prompt, *chosen, 0], [*prompt, *rejected]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    completion_mask = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]])
    labels = torch.where(completion_mask == 1, ids, -100)
    with torch.no_grad():
        alone = [model(input_ids=ids[:1, :5]).logits, model(input_ids=ids[1:]).logits]
        assert packing.turn_on(model, pairs=True) == "rows"
        padded = model(input_ids=ids, attention_mask=attention_mask).logits
        packed = packing.pack_rows(ids, attention_mask, completion_mask, kernel="rows")
        rows = packing.inputs_of_rows({"input_ids": ids, "labels": labels, "packed": packed}, answers_alone=True)
        of_rows = model(**rows)
        pair = packing.pack_pairs(ids, attention_mask, completion_mask, kernel="rows")
        of_pair = model(**pair.model_inputs(ids)).logits
    assert torch.allclose(padded[0, :5], alone[0][0], atol=1e-5) and torch.allclose(padded[1], alone[1][0], atol=1e-5)
    assert rows["input_ids"].tolist() == [[5, 6, 7, 8, 9, 7, 10, 11, 12]]  # of the prompt all but its last token once
    assert rows["shift_labels"].tolist() == [[8, 9, 10, 11, 12]]
    predicting = torch.cat([alone[0][:, 2:4], alone[1][:, 2:5]], dim=1)
    assert torch.allclose(of_rows.logits, predicting, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(predicting[0], torch.tensor([8, 9, 10, 11, 12]))
    assert of_rows.loss == pytest.approx(loss.item(), rel=1e-5)
    assert pair.take(ids).tolist() == [[5, 6, 7, 8, 9, 7, 10, 11, 12]]
    assert torch.allclose(of_pair, torch.cat([alone[0], alone[1][:, 2:]], dim=1), atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["aab|c", "aad|c"], ["aa", "bc", "dc"]),
        (["abc|d", "abc|e"], ["ab", "cd", "ce"]),  # the answers are predicted from a `c` each
        (["abc|d", "bbc|d"], ["abcd", "bbcd"]),
        (["aab|c", "a|ab"], ["aabc", "aab"]),  # an answer is never shared, whatever it begins with
        (["aab|c"], ["aabc"]),
        (["ab|c", "ab|c", "ac|c"], ["a", "bc", "bc", "cc"]),
    ],
)
def test_what_all_rows_of_a_batch_begin_with_is_there_once(rows, expected):
    width = max(map(len, rows))
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    for row, text in enumerate(rows):
        tokens = torch.tensor([ord(letter) for letter in text.replace("|", "")])
        ids[row, : len(tokens)] = tokens
        labels[row, text.index("|") : len(tokens)] = tokens[text.index("|") :]
    packed = packing.pack_rows(ids, (ids > 0).long(), labels != -100, kernel="rows")
    assert packed.layout.row_lengths == [len(text) for text in expected]
    packed = packing.inputs_of_rows({"input_ids": ids, "labels": labels, "packed": packed}, answers_alone=True)
    assert "".join(map(chr, packed["input_ids"][0].tolist())) == "".join(expected)
    assert "".join(map(chr, packed["shift_labels"][0].tolist())) == "".join(row.partition("|")[2] for row in rows)


def test_pairs_with_one_beginning_have_the_logits_of_each_alone():
    model = model_of("Llama")
    pairs = [([5, 6, 7], [8, 9], [10]), ([5, 6, 11, 12], [13], [14, 15, 16])]
    texts = [[*prompt, *pair[answer]] for answer in (0, 1) for prompt, *pair in pairs]
    ids = torch.tensor([text + [0] * (7 - len(text)) for text in texts])
    columns = torch.arange(7)
    spans = [(len(prompt), len(text)) for text, (prompt, *_) in zip(texts, pairs * 2, strict=True)]
    completion_mask = torch.stack([(columns >= start) & (columns < end) for start, end in spans]).long()
    packed = packing.pack_pairs(ids, (ids > 0).long(), completion_mask, kernel="rows")
    assert packed.take(ids).tolist() == [[5, 6, 7, 8, 9, 7, 10, 11, 12, 13, 12, 14, 15, 16]]
    assert packed.layout.row_lengths == [2, 5, 7]
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([text])).logits[0] for text in texts]
        packing.turn_on(model, pairs=True)
        logits = model(**packed.model_inputs(ids)).logits[0]
    shared, first, second = logits.split(packed.layout.row_lengths)
    assert torch.allclose(torch.cat([shared, first[:3]]), alone[0], atol=1e-5)
    assert torch.allclose(first[3:], alone[2][2:], atol=1e-5)
    assert torch.allclose(torch.cat([shared, second[:3]]), alone[1], atol=1e-5)
    assert torch.allclose(second[3:], alone[3][3:], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("GPT2", {}),  # positions are learned
        ("Bloom", {}),  # attention falls with the distance
        ("Mistral", {"sliding_window": 16}),  # of which a short row shows nothing
        ("Gemma3Text", {}),
        ("FalconMamba", {"state_size": 4}),
        ("Nemotron", {}),  # its attention is its own
    ],
)
def test_models_that_see_past_a_row_are_given_padded_batches(name, settings):
    model = model_of(name, **settings)
    before = model.config._attn_implementation
    assert not packing.turn_on(model, pairs=False)
    assert model.config._attn_implementation == before
