"""Rewards of a sequence classifier: the value by hand, the same in any batch, and what is no reward model."""

import json
import logging
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from posttrain import preflight
from posttrain.config import PairsConfig, PipelineConfig
from posttrain.rows import chat
from posttrain.rows.formats import read_jsonl
from posttrain.step.records import recent_records
from tests.validators.test_sampling import ASKED, run, scored, texts
from validators import reward
from validators.sampling import choose

PROMPT = [{"role": "user", "content": "2 + 2?"}]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory, tiny_model) -> Path:
    """Folder of a tiny reward model with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    path = shutil.copytree(tiny_model, tmp_path_factory.mktemp("reward") / "model")
    (path / "model.safetensors").unlink()
    config = AutoConfig.from_pretrained(tiny_model, num_labels=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(path)
    return path


def test_the_reward_is_the_head_on_the_last_token_by_hand(reward_model):
    import torch

    (value,) = reward.rewards(reward_model, [PROMPT], ["4"])
    model, tokenizer = reward.load(reward_model), chat.load_tokenizer(reward_model)
    ids = chat.render(tokenizer, PROMPT, [{"role": "assistant", "content": "4"}])
    with torch.inference_mode():
        state = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
    by_hand = sum(a * b for a, b in zip(model.score.weight[0].tolist(), state.tolist(), strict=True))
    assert math.isclose(value, by_hand, rel_tol=1e-4)


def test_the_reward_is_the_same_in_any_batch_also_where_rows_end_with_the_padding_token(reward_model, caplog):
    caplog.set_level(logging.INFO)
    model, tokenizer = reward.load(reward_model), chat.load_tokenizer(reward_model)
    end = tokenizer.eos_token_id
    rows = [[5, 6, 7, end], [5, 6, 7, 8, 9, 10, end, end], [9, 8], [0, 1, 2, 3, end]]
    alone = [reward.score(model, [row])[0] for row in rows]
    caplog.clear()
    assert reward.score(model, rows) == pytest.approx(alone, rel=1e-5)
    assert caplog.messages == ["reward_model: measured 4 of 4 answers"]
    assert reward.score(model, rows, batch_size=2) == pytest.approx(alone, rel=1e-5)
    assert len(set(alone)) == len(rows)


def test_a_model_that_reads_in_both_directions_does_not_see_the_padding():
    import torch

    class Summing(torch.nn.Module):
        config, device = SimpleNamespace(pad_token_id=None), torch.device("cpu")

        def forward(self, input_ids, attention_mask, use_cache):
            return SimpleNamespace(logits=(input_ids * attention_mask).sum(1, keepdim=True))

    assert reward.score(Summing(), [[0, 5], [0, 5, 6, 7]]) == [5.0, 18.0]


def test_padding_is_a_token_that_no_row_has():
    assert [reward._unused_id(rows) for rows in ([[1, 2]], [[0, 2], [1]], [[0], [1], [3]])] == [0, 3, 2]


def test_no_code_of_the_model_is_run_and_no_bar_drawn(reward_model, tmp_path):
    from transformers.utils import logging

    path = Path(shutil.copytree(reward_model, tmp_path / "model"))
    settings = json.loads((path / "config.json").read_text())
    settings["auto_map"] = {"AutoModelForSequenceClassification": "code.Reward"}
    (path / "config.json").write_text(json.dumps(settings))
    logging.enable_progress_bar()
    assert type(reward.load(path)).__name__ == "LlamaForSequenceClassification"
    assert not logging.is_progress_bar_enabled()


def test_what_gives_no_reward_is_refused_by_its_setting(reward_model, tiny_model, tmp_path):
    assert reward.fetch(str(reward_model), tmp_path, ["/"]) == str(reward_model)
    with pytest.raises(ValueError, match="pairs.reward_model: .*is LlamaForCausalLM with 2 labels; give a"):
        reward.fetch(str(tiny_model), tmp_path, ["/"])
    with pytest.raises(ValueError, match="pairs.reward_model"):
        reward.fetch(str(reward_model), tmp_path, ["gs://b/"])
    headless = shutil.copytree(tiny_model, tmp_path / "headless")
    shutil.copy(reward_model / "config.json", headless)
    with pytest.raises(ValueError, match="has no score.weight; give the whole model"):
        reward.load(headless)
    (headless / "config.json").write_text(
        json.dumps(json.loads((reward_model / "config.json").read_text()) | {"auto_map": {"AutoModel": "x.Y"}})
    )
    with pytest.raises(ValueError, match="auto_map asks for the model's own code"):
        reward.fetch(str(headless), tmp_path, ["/"])


def test_a_reward_model_is_for_where_there_is_no_matcher():
    line = {"stages": {"pairs": {"enabled": True}}, "pairs": {"reward_model": "org/reward"}}
    assert PipelineConfig(**line, validation={"answer_match": "none"}).pairs.least_margin == 1.0
    with pytest.raises(ValueError, match="answer_match is exact, which tells right answers from wrong ones"):
        PipelineConfig(**line, validation={"answer_match": "exact"})
    with pytest.raises(ValueError, match="there is no pairs.reward_model"):
        PipelineConfig(stages=line["stages"], validation={"answer_match": "none"})
    with pytest.raises(ValueError, match="the row's own answer has no reward"):
        PairsConfig(reward_model="org/reward", use_reference=True)


def test_preflight_looks_at_the_reward_model(reward_model, tiny_model):
    config = PipelineConfig(allowed_prefixes=["/"])
    preflight.check_reward_model(str(reward_model), config, name="pairs.reward_model")
    with pytest.raises(ValueError, match="give a reward model"):
        preflight.check_reward_model(str(tiny_model), config, name="pairs.reward_model")


SETTINGS = PairsConfig(reward_model="r", min_reward_margin=1.5)


def test_the_answer_with_the_highest_reward_is_chosen_and_that_with_the_lowest_rejected():
    chosen = choose(ASKED, [scored("3", -0.5), scored("5", 2.0), scored("6", -3.0)], SETTINGS)
    assert texts(chosen) == ("5", "6")
    assert (chosen.margin, chosen.scores) == (5.0, (2.0, -3.0))
    assert choose(ASKED, [scored("3", 0.5), scored("5", 1.9)], SETTINGS).outcome == "small_margin"


def test_an_answer_that_is_cut_off_in_a_wrong_form_or_accepted_is_not_taken_for_its_reward():
    answers = [scored("5", 1.0), scored("7", 9.0, stopped=False), scored("8", 9.0, fault="no"), scored("6", -1.0)]
    assert texts(choose(ASKED, [*answers, scored("four", -9.0), scored(" ", -9.0)], SETTINGS)) == ("5", "6")
    assert choose(ASKED, [scored("5", 9.0, stopped=False), scored("6", 0.0, fault="no")], SETTINGS).outcome == (
        "no_right_answer"
    )
    assert choose(ASKED, [scored("4", 9.0), scored("four", 0.0)], SETTINGS).outcome == "no_wrong_answer"
    assert choose(ASKED, [scored("5", 9.0), scored("5", 9.0)], SETTINGS).outcome == "small_margin"


@pytest.mark.long
def test_pairs_are_made_by_rewards(tmp_path, taught_model, reward_model, task_api_rows):
    pairs = {"num_answers": 3, "reward_model": str(reward_model), "min_reward_margin": 0.01}
    out = run(tmp_path / "a", taught_model, task_api_rows["sft"][:4], pairs=pairs, answer_match="none")
    metrics = json.loads(out["metrics"])
    assert metrics["num_sampled_pairs"] > 0 and "right_answer_rate" not in metrics
    assert metrics["mean_chosen_reward"] - metrics["mean_rejected_reward"] == pytest.approx(metrics["mean_margin"])
    by_text = {
        (line["id"], answer["text"]): answer["score"]
        for line in map(json.loads, out["answers"].splitlines())
        for answer in line["answers"]
    }
    for pair in read_jsonl(tmp_path / "a" / "out" / "train"):
        sides = [pair[key][0]["content"] for key in ("chosen", "rejected")]
        expected = reward.rewards(reward_model, [pair["prompt"]] * 2, sides)
        assert [by_text[pair["id"].removeprefix("sampled/"), side] for side in sides] == pytest.approx(
            expected, rel=1e-4
        )
    assert "reward_model" in recent_records(str(tmp_path / "a" / "root"))[0].inputs
