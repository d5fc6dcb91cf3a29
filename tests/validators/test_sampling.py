"""Pairs out of a model's own answers: which answers make a pair, how pairs are mixed, and the step from end to end."""

import json
import math

import pytest

from posttrain.config import DataConfig, PairsConfig, SamplePairsStep, SamplingLimits
from posttrain.pages.answers import RIGHT
from posttrain.rows.formats import check_row, read_jsonl, write_jsonl
from validators import sampling
from validators.answers import JudgedAnswer
from validators.inference import Answer
from validators.sampling import Asked, ScoredAnswer, choose, mixed

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
ROW = {
    "id": "sum",
    "prompt": [{"role": "user", "content": "2 + 2?", "tools": TOOLS}],
    "completion": [{"role": "assistant", "content": "4"}],
}
ASKED = Asked(ROW, ["4", "four"])


def scored(text: str, score: float, **words) -> ScoredAnswer:
    return ScoredAnswer(text, text, score, **words)


def texts(chosen: sampling.Chosen) -> tuple[str, str]:
    return chosen.pair["chosen"][0]["content"], chosen.pair["rejected"][0]["content"]


def test_the_best_answer_is_chosen_and_the_worst_rejected():
    answers = [scored("3.9", 0.4), scored("4", 1.0), scored("5", 0.0), scored("four", 0.8)]
    chosen = choose(ASKED, answers, PairsConfig())
    assert texts(chosen) == ("4", "5")
    assert (chosen.outcome, chosen.margin) == ("pair", 1.0)


def test_of_equal_answers_the_one_that_was_drawn_most_often_is_taken():
    answers = [scored("5", 0.0), scored("6", 0.0), scored("4", 1.0), scored("6", 0.0), scored("four", 1.0)]
    assert texts(choose(ASKED, [*answers, scored("four", 1.0)], PairsConfig())) == ("four", "6")


def test_a_pair_is_a_row_to_train_on_with_the_tools_of_its_prompt_and_every_accepted_answer():
    pair = choose(ASKED, [scored("4", 1.0), scored("5", 0.0)], PairsConfig()).pair
    check_row(pair, "preference")
    assert pair["prompt"][0]["tools"] == TOOLS
    assert pair["references"] == ["4", "four"]
    assert pair["id"] == "sampled/sum"


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([scored("4", 1.0), scored("four", 1.0)], "no_wrong_answer"),
        ([scored("5", 0.0), scored("6", 0.0)], "no_right_answer"),
        ([scored("4", 0.6), scored("5", 0.3)], "small_margin"),
        # Cut off, empty, or equal to an accepted answer that the scorer missed: none of these may be rejected.
        ([scored("4", 1.0), scored("5 and", 0.0, stopped=False)], "no_wrong_answer"),
        ([scored("4", 1.0), scored(" ", 0.0)], "no_wrong_answer"),
        ([scored("4", 1.0), scored("four", 0.0)], "no_wrong_answer"),
        # A right answer in a wrong form is neither chosen nor rejected.
        ([scored("4", 1.0, fault="is not JSON"), scored("5", 0.0)], "no_right_answer"),
        ([scored("4", 1.0), scored("4.", 0.9, fault="is not JSON")], "no_wrong_answer"),
    ],
)
def test_a_prompt_without_a_right_and_a_wrong_answer_gives_no_pair(answers, outcome):
    chosen = choose(ASKED, answers, PairsConfig())
    assert chosen == sampling.Chosen(outcome) and (chosen.pair, chosen.margin) == (None, 0.0)


@pytest.mark.parametrize(("score", "is_right"), [(RIGHT, True), (math.nextafter(RIGHT, 0), False)])
def test_an_answer_is_right_from_the_score_at_which_pages_call_it_so(score, is_right):
    answer = scored("4", score)
    assert (answer.is_right, answer.is_wrong) == (is_right, not is_right)


def test_a_margin_may_be_as_small_as_the_least():
    answers = [scored("4", 1.0), scored("5", 0.25)]
    assert choose(ASKED, answers, PairsConfig(min_margin=0.75)).margin == 0.75
    assert choose(ASKED, answers, PairsConfig(min_margin=0.76)).outcome == "small_margin"


def test_where_no_answer_is_right_the_rows_own_may_be_the_chosen_one():
    settings = PairsConfig(use_reference=True)
    chosen = choose(ASKED, [scored("5", 0.25)], settings)
    assert texts(chosen) == ("4", "5") and chosen.scores == (1.0, 0.25)
    assert texts(choose(ASKED, [scored("5", 0.0), scored("four", 1.0)], settings)) == ("four", "5")
    assert choose(ASKED, [scored("4", 1.0)], settings).outcome == "no_wrong_answer"


def test_thoughts_are_a_part_of_the_message_and_the_templates_empty_ones_are_not():
    thoughtful = Answer("4", True, 9, thoughts="<think>\ntwo and two\n</think>\n\n")
    assert sampling.message_text(thoughtful, "") == "<think>\ntwo and two\n</think>\n\n4"
    empty = "<think>\n\n</think>\n\n"
    assert sampling.message_text(Answer("4", True, 9, thoughts=empty), empty) == "4"
    assert sampling.message_text(Answer("4", True, 9), "") == "4"


@pytest.mark.parametrize(("share", "num"), [(None, 6), (0.5, 4), (0.2, 1), (0.9, 6)])
def test_sampled_pairs_join_the_brought_ones_up_to_their_share(share, num):
    sampled, brought = [{"id": f"s{at}"} for at in range(6)], [{"id": f"b{at}"} for at in range(4)]
    rows = mixed(sampled, brought, share)
    assert rows[:4] == brought
    assert len(rows) == 4 + num
    assert rows[4]["id"] == "s0"
    assert mixed(sampled, [], share) == sampled


def test_every_answer_of_rows_with_the_same_prompt_is_accepted():
    other = ROW | {"id": "again", "completion": [{"role": "assistant", "content": "vier"}]}
    (asked,) = sampling.asked_of([ROW | {"references": ["IV"]}, other])
    assert sorted(asked.accepted) == ["4", "IV", "vier"]


def test_every_different_prompt_is_asked_once_up_to_a_number():
    rows = [ROW | {"id": f"{at}", "prompt": [{"role": "user", "content": f"{at // 2} + 2?"}]} for at in range(8)]
    assert [len(sampling.asked_of(some)) for some in (rows, [])] == [4, 0]
    assert len(sampling.asked_of(rows, 3)) == 3


def test_what_became_of_the_prompts_is_counted():
    groups = [
        [scored("4", 1.0), scored("5", 0.0)], [scored("4", 0.9), scored("5", 0.25)], [scored("5", 0.0)] * 2,
        [scored("4", 1.0)] * 2, [scored("4", 0.6), scored("5", 0.4)],
    ]  # fmt: skip
    chosen = [choose(ASKED, group, PairsConfig()) for group in groups]
    numbers = sampling.numbers_of(chosen, [one for group in groups for one in group])
    assert numbers == pytest.approx({
        "num_prompts": 5, "num_sampled_answers": 10, "right_answer_rate": 0.5, "pair_yield": 0.4,
        "num_prompts_with_no_right_answer": 1, "num_prompts_with_no_wrong_answer": 1,
        "num_prompts_with_small_margin": 1, "num_sampled_pairs": 2, "least_margin": 0.65, "mean_margin": 0.825,
        "num_pairs_with_reference": 0,
    })  # fmt: skip
    with_reference = [choose(ASKED, group, PairsConfig(use_reference=True)) for group in groups]
    assert sampling.numbers_of(with_reference, [])["num_pairs_with_reference"] == 1  # of the third, all wrong
    one = sampling.numbers_of(chosen[:1], [scored("4", 1.0)])
    assert (one["right_answer_rate"], one["pair_yield"]) == (1, 1)
    none = sampling.numbers_of([], [])
    assert (none["right_answer_rate"], none["pair_yield"]) == (0, 0) and "least_margin" not in none


def test_rewards_are_counted_over_the_prompts_that_gave_a_pair():
    settings = PairsConfig(reward_model="r", min_reward_margin=1.5)
    groups = [[scored("5", 3.0), scored("6", -1.0)], [scored("5", 0.5), scored("6", 0.0)]]
    chosen = [choose(ASKED, group, settings) for group in groups]
    numbers = sampling.numbers_of(chosen, [], by_reward=True)
    assert (numbers["mean_chosen_reward"], numbers["mean_rejected_reward"]) == (3.0, -1.0)
    assert "right_answer_rate" not in numbers
    assert "mean_chosen_reward" not in sampling.numbers_of(chosen[1:], [], by_reward=True)


def test_the_prompts_of_another_data_set_are_brought_with_their_references(tmp_path):
    prompts = [[{"role": "user", "content": f"{number} + 4?"}] for number in range(8)]
    rows = [{"prompt": prompt, "completion": ROW["completion"], "references": ["IV"]} for prompt in prompts]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    pairs = PairsConfig(prompts=str(tmp_path / "rows.jsonl"))
    step = SamplePairsStep(pairs=pairs, data=DataConfig(eval_fraction=0.5), allowed_prefixes=["/"])
    paths = sampling.bring_prompts(step, tmp_path)
    asked = sampling.read_asked(paths["rows"], paths["references"], step.pairs)
    assert 0 < len(asked) < 8 and all(one.row["prompt"] in prompts for one in asked)  # the others are held out
    assert {tuple(sorted(one.accepted)) for one in asked} == {("4", "IV")}
    (tmp_path / "rows.jsonl").write_text("{")
    with pytest.raises(ValueError, match="pairs.prompts: "):
        sampling.bring_prompts(step, tmp_path)


def test_prompts_outside_the_allowed_prefixes_are_refused(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [ROW])
    step = SamplePairsStep(pairs=PairsConfig(prompts=str(tmp_path / "rows.jsonl")), allowed_prefixes=["gs://mine"])
    with pytest.raises(ValueError, match="pairs.prompts.*allowed"):
        sampling.bring_prompts(step, tmp_path)
    assert sampling.bring_prompts(SamplePairsStep(), tmp_path) == {}


def test_where_nobody_judges_content_an_answer_without_harm_is_right(monkeypatch):
    monkeypatch.setattr(sampling.judges, "load", lambda path: path)
    monkeypatch.setattr(sampling.judges, "by_model", lambda path, judged: [None, "unsafe", None])
    limits = SamplingLimits(answer_match="none", judge_model="acme/judge")
    assert sampling._scores([], [], limits, {sampling.HARM_JUDGE: "acme/judge"}) == [1.0, 0.0, 1.0]


def test_answers_that_could_not_be_scored_end_the_step():
    judged = [JudgedAnswer(ROW["prompt"], Answer("4", True, 1), None)]
    limits = SamplingLimits(answer_match="number")
    assert sampling._scores(judged, [["4"]], limits, {}) == [1.0]
    with pytest.raises(RuntimeError, match="reference 'four' holds no number"):
        sampling._scores(judged, [["four"]], limits, {})


def test_settings_that_decide_no_answer_are_in_no_fingerprint():
    before = SamplePairsStep(validation=SamplingLimits(answer_match="exact")).decisive
    assert SamplePairsStep(validation=SamplingLimits(answer_match="exact", check_timeout_seconds=9)).decisive == before
    assert SamplePairsStep(validation=SamplingLimits(answer_match="exact", max_new_tokens=8)).decisive != before
    changed = SamplePairsStep(pairs=PairsConfig(seed=1), validation=SamplingLimits(answer_match="exact"))
    assert changed.decisive != before


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A function that samples two answers to each prompt, with these scores, and gives its numbers."""
    row = ROW | {"id": "other", "prompt": [{"role": "user", "content": "1 + 1?"}]}
    write_jsonl(tmp_path / "rows", [ROW, row])
    write_jsonl(tmp_path / "references", [])

    def run_it(*scores: float, **more: list[dict]) -> dict[str, float]:
        for name, rows in more.items():
            write_jsonl(tmp_path / name, rows)
        sampled = [scored(f"answer {number}", score) for number, score in enumerate(scores)]
        monkeypatch.setattr(sampling, "sample", lambda *_: sampled)
        inputs = {name: str(tmp_path / name) for name in ("model", "rows", "references", *more)}
        outputs = {name: str(tmp_path / f"{name}.out") for name in ("train", "answers", "metrics")}
        if "held_out" in more:
            outputs["eval"] = str(tmp_path / "eval.out")
        step = SamplePairsStep(pairs=PairsConfig(num_answers=2, max_sampled_share=0.5))
        return sampling.work(inputs, outputs, step, {}, None)

    return run_it


def test_pairs_of_the_prompts_join_the_brought_ones(work, tmp_path):
    brought = [{"id": "b", "prompt": ROW["prompt"], "chosen": ROW["completion"], "rejected": ROW["completion"]}]
    numbers = work(1.0, 0.0, 1.0, 0.0, brought=brought)
    assert (numbers["num_train_pairs"], numbers["num_brought_pairs"], numbers["num_sampled_pairs"]) == (2, 1, 2)
    assert numbers["right_answer_rate"] == 0.5
    assert [row["id"] for row in read_jsonl(tmp_path / "train.out")] == ["b", "sampled/sum"]
    assert not (tmp_path / "eval.out").exists()
    written = (tmp_path / "metrics.out").read_text()
    assert json.loads(written) == numbers and written.endswith("}\n")


def test_pairs_of_held_out_prompts_are_neither_trained_on_nor_counted(work, tmp_path):
    held_out = [
        ROW | {"id": f"held out {number}", "prompt": [{"role": "user", "content": f"{number}?"}]} for number in (1, 2)
    ]
    numbers = work(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, held_out=held_out)
    assert (numbers["num_prompts"], numbers["num_sampled_answers"], numbers["num_train_pairs"]) == (2, 4, 1)
    assert [row["id"] for row in read_jsonl(tmp_path / "train.out")] == ["sampled/sum"]
    assert [row["id"] for row in read_jsonl(tmp_path / "eval.out")] == ["sampled/held out 1"]
    lines = [json.loads(line) for line in (tmp_path / "answers.out").read_text().splitlines()]
    assert [line["outcome"] for line in lines] == ["pair", "no_right_answer"] * 2


def test_a_margin_that_is_no_number_is_not_written(work):
    with pytest.raises(ValueError, match="not JSON compliant"):
        work(math.inf, 0.0, 1.0, 0.0)


def run(folder, model, rows, *, seed: int = 1, pairs: dict | None = None, answer_match="exact") -> dict[str, str]:
    """Runs the step without brought pairs; gives what it wrote."""
    folder.mkdir()
    write_jsonl(folder / "rows.jsonl", [{key: row[key] for key in ("id", "prompt", "completion")} for row in rows])
    write_jsonl(folder / "references.jsonl", [{"id": rows[0]["id"], "references": ["no answer is this"]}])
    outputs = {name: folder / "out" / name for name in ("train", "eval", "answers", "metrics")}
    pairs = pairs or {"num_answers": 2, "use_reference": True, "seed": seed}
    validation = {"answer_match": answer_match, "max_new_tokens": 12, "output_format": {"kind": "text"}}
    settings = json.dumps({"pairs": pairs, "validation": validation})
    flags = {
        "step": "sample_pairs", "storage-root": folder / "root", "config": settings,
        "model": model, "rows": folder / "rows.jsonl", "references": folder / "references.jsonl",
        "held-out": folder / "rows.jsonl", **outputs,
    }  # fmt: skip
    sampling.main([part for name, value in flags.items() for part in (f"--{name}", str(value))])
    return {name: path.read_text() for name, path in outputs.items()}


@pytest.mark.long
def test_the_same_seed_gives_the_same_pairs_and_another_one_others(tmp_path, taught_model, task_api_rows):
    rows = task_api_rows["sft"][:6]
    first, again = (run(tmp_path / name, taught_model, rows) for name in ("first", "again"))
    other = run(tmp_path / "other", taught_model, rows, seed=2)
    assert first == again
    assert first["answers"] != other["answers"]
    metrics = json.loads(first["metrics"])
    assert metrics["num_prompts"] == 6 and metrics["num_sampled_answers"] == 12
    lines = [json.loads(line) for line in first["answers"].splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in rows] * 2
    pairs = read_jsonl(tmp_path / "first" / "out" / "train")
    assert len(pairs) == metrics["num_sampled_pairs"] == sum(line["outcome"] == "pair" for line in lines[:6]) > 0
    assert not [pair for pair in pairs if pair["rejected"][0]["content"] in pair["references"]]
