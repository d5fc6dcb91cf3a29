"""Sample preference pairs from the merged SFT model: the best of several answers to a prompt against the worst.

full model, SFT rows to train on and their references; held-out SFT rows, or the pairs that are brought -> pairs to
train on, held-out pairs where none are brought, every sampled answer with its score (JSONL), metrics.json

    python -m validators.sampling --step sample_pairs --storage-root DIR --model DIR --rows train.jsonl
        --references references.jsonl --held-out eval.jsonl --train pairs.jsonl --eval held_out_pairs.jsonl
        --answers answers.jsonl --metrics metrics.json

It is no gate, but it judges: answers are generated and scored as the gates do it, or, where there is no matcher, by the
judge of harm or a reward model. Pairs of the model's own answers are those of iterative DPO (arXiv:2312.16682,
arXiv:2404.19733).
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from posttrain import config, data, storage
from posttrain.config.mixture import uris_of
from posttrain.pages.answers import RIGHT
from posttrain.rows import chat
from posttrain.rows.formats import as_seen, is_blank, own_reference, read_jsonl, write_jsonl
from posttrain.rows.thoughts import said
from posttrain.step import frame, kfp_io
from posttrain.step.running import Running
from validators import answers, checks, content, judges, measuring, reward
from validators.answers import JudgedAnswer
from validators.inference import Answer, SamplingParams
from validators.matching import Reference, structured
from validators.session import Session

SAMPLED = "sampled/"  # begins the id of a pair that was sampled
HARM_JUDGE = "harm_judge"  # name of the input that is the model which judges harm
REWARD_MODEL = "reward_model"  # and of that which gives rewards
NO_LIMIT_SECONDS = 7 * 24 * 3600
PAIR = "pair"  # what became of a prompt; or why it gave none:
OUTCOMES = (PAIR, "no_right_answer", "no_wrong_answer", "small_margin")


@dataclass(frozen=True)
class Asked:
    """A prompt that is sampled, and all answers to it that count as right."""

    row: dict
    accepted: list[Reference]


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer as a pair is made of it."""

    text: str
    content: str  # of the message: the text after its thoughts, if it has any
    score: float  # from 0 to 1, or a reward
    stopped: bool = True  # by itself
    fault: str | None = None  # of its form

    @property
    def is_right(self) -> bool:
        return self.score >= RIGHT and self.fault is None

    @property
    def is_whole(self) -> bool:
        """Whether it may be rejected: an answer that was cut off or says nothing has nothing to learn from."""
        return self.stopped and not is_blank(self.text)

    @property
    def is_wrong(self) -> bool:
        return self.score < RIGHT and self.is_whole


@dataclass(frozen=True)
class Chosen:
    """The outcome of a prompt: its pair, or why it gave none."""

    outcome: str
    pair: dict | None = None
    margin: float = 0.0
    scores: tuple[float, float] | None = None  # of chosen and rejected
    has_reference: bool = False  # the row's own answer is chosen: none of the sampled ones is right


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The sampled answers, as they come from the measuring process."""

    answers: list[JudgedAnswer] | None = None
    harms: list[str | None] | None = None
    rewards: list[float] | None = None


# --- prompts and their answers ----------------------------------------------------------------------------------------


def read_asked(rows_path: str, references_path: str | None, settings: config.PairsConfig) -> list[Asked]:
    """The prompts of a file of SFT rows, each once, with the references that another file has for them."""
    rows = read_jsonl(rows_path)
    references = {row["id"]: row[data.REFERENCES] for row in read_jsonl(references_path)} if references_path else {}
    rows = [row | ({data.REFERENCES: references[row["id"]]} if row["id"] in references else {}) for row in rows]
    return asked_of(rows, settings.max_prompts)


def asked_of(rows: list[dict], max_prompts: int | None = None) -> list[Asked]:
    """The different prompts of rows. A row's own answer is always accepted, whatever its references are."""
    asked = answers.choose_rows(rows, max_prompts or len(rows)) if rows else []
    own = [{"prompt": row["prompt"], data.REFERENCES: [own_reference(row["completion"][0])]} for row in rows]
    accepted = content.references_by_row(asked, [*rows, *own])
    return [Asked(row, some) for row, some in zip(asked, accepted, strict=True)]


def bring_prompts(step: config.SamplePairsStep, folder: Path) -> dict[str, str]:
    """Local copies of the data set `pairs.prompts`: its training side, and the references there; empty without one.

    Raises:
        ValueError: naming the setting, it cannot be read.
    """
    if not step.pairs.prompts:
        return {}
    for uri in uris_of(step.pairs.prompts):
        storage.check_allowed(uri, step.allowed_prefixes, name="pairs.prompts")
    paths = {name: str(folder / f"{name}.jsonl") for name in ("train", data.REFERENCES)}
    with data.complete_files(paths) as write:
        try:
            keep = partial(write, data.REFERENCES)
            data.prepare(step.pairs.prompts, kind="sft", settings=step.data, write=write, keep_references=keep)
        except ValueError as error:
            raise ValueError(f"pairs.prompts: {error}") from error
    return {"rows": paths["train"], data.REFERENCES: paths[data.REFERENCES]}


def sample(model: str, asked: list[Asked], step: config.SamplePairsStep, judge: dict[str, str]) -> list[ScoredAnswer]:
    """`num_answers` answers to each prompt, one prompt after the other, scored from 0 to 1, or by a reward model.

    Raises:
        RuntimeError: they could not be generated or scored.
    """
    settings, limits = step.pairs, step.validation
    prompts = [one.row["prompt"] for one in asked for _ in range(settings.num_answers)]
    accepted = [one.accepted for one in asked for _ in range(settings.num_answers)]

    def generate() -> dict[str, list[JudgedAnswer]]:
        session = Session(limits)
        session.load(Path(model))
        drawn = SamplingParams(settings.temperature, settings.top_p, settings.seed)
        return {"answers": session.sample(prompts, drawn)}

    own_limit = measuring.Timeouts(NO_LIMIT_SECONDS, limits.check_timeouts)  # the step's own ends it before that
    measured = measuring.in_order({"answers_sampled": generate}, own_limit)
    judged = measuring.whole(measured).read(Numbers).answers
    before = chat.text_before_answers(chat.load_tokenizer(model))
    contents = [message_text(one.answer, before) for one in judged]
    if settings.reward_model:
        scores = _rewards(judge[REWARD_MODEL], prompts, contents, own_limit)
    else:
        scores = _scores(judged, accepted, limits, judge)
    return [
        ScoredAnswer(one.answer.text, text, score, one.answer.stopped, one.fault)
        for one, text, score in zip(judged, contents, scores, strict=True)
    ]


def message_text(answer: Answer, before: str) -> str:
    """An answer as the content of a message: with the thoughts of its own, without the template's empty ones."""
    thoughts = answer.thoughts.removeprefix(before).strip().removeprefix("<think>").removesuffix("</think>").strip()
    return f"<think>\n{thoughts}\n</think>\n\n{answer.text}" if thoughts else answer.text


def _rewards(path: str, prompts: list[list[dict]], contents: list[str], timeouts: measuring.Timeouts) -> list[float]:
    """By the reward model, in a process of its own: the one that sampled has ended, and left its memory."""

    def measure() -> dict[str, list[float]]:
        return {"rewards": reward.rewards(path, prompts, contents)}

    return measuring.whole(measuring.in_order({"rewards_measured": measure}, timeouts)).read(Numbers).rewards


def _scores(
    judged: list[JudgedAnswer], accepted: list[list[Reference]], limits: config.SamplingLimits, judge: dict[str, str]
) -> list[float]:
    """By the matcher of `answer_match`; where it is none, 1 for an answer in which the judge of harm finds no harm."""
    if limits.matcher != "none":
        answered, measured = content.score(
            content.Content(references=accepted, model=judged), limits, judge.get(content.JUDGE)
        )
        measuring.whole(measured)
        return answered.scores["model"]

    def find_harm() -> dict[str, list[str | None]]:
        return {"harms": judges.by_model(judges.load(judge[HARM_JUDGE]), judged)}

    measured = measuring.in_order({"harm_judged": find_harm}, checks.timeouts(limits))
    return [0.0 if harm else 1.0 for harm in measuring.whole(measured).read(Numbers).harms]


# --- from answers to pairs --------------------------------------------------------------------------------------------


def choose(asked: Asked, sampled: list[ScoredAnswer], settings: config.PairsConfig) -> Chosen:
    """Makes the pair of a prompt. Of answers with equal scores that which was drawn most often is taken: a mistake
    that the model makes often is the one to unlearn.
    """
    often = Counter(one.content for one in sampled)
    accepted = {as_seen(structured.sample_text(reference)) for reference in asked.accepted}
    if settings.reward_model:  # knows better and worse answers, no right and wrong ones
        right = [one for one in sampled if one.is_whole and one.fault is None]
        wrong = [one for one in sampled if one.is_whole]
    else:
        right = [one for one in sampled if one.is_right]
        wrong = [one for one in sampled if one.is_wrong]
    wrong = [one for one in wrong if as_seen(one.text) not in accepted]
    message, best = _best(asked.row, right, often, use_reference=settings.use_reference)
    if message is None or not wrong:
        return Chosen("no_wrong_answer" if right else "no_right_answer")
    worst = min(wrong, key=lambda one: (one.score, -often[one.content]))
    if best - worst.score < settings.least_margin:
        return Chosen("small_margin")
    pair = {
        "id": SAMPLED + asked.row["id"],
        "prompt": asked.row["prompt"],
        "chosen": [message],
        "rejected": [{"role": "assistant", "content": worst.content}],
        data.REFERENCES: asked.accepted,
    }
    return Chosen(PAIR, pair, best - worst.score, (best, worst.score), has_reference=not right)


def _best(
    row: dict, right: list[ScoredAnswer], often: Counter[str], *, use_reference: bool
) -> tuple[dict | None, float]:
    """The message that is chosen, and its score."""
    if right:
        best = max(right, key=lambda one: (one.score, often[one.content]))
        return {"role": "assistant", "content": best.content}, best.score
    return (row["completion"][0], 1.0) if use_reference else (None, 0.0)


def mixed(sampled: list[dict], brought: list[dict], max_sampled_share: float | None) -> list[dict]:
    """The brought pairs, and as many of the sampled ones, spread evenly, as their share allows."""
    num = len(sampled)
    if max_sampled_share is not None and brought:
        num = min(num, int(max_sampled_share * len(brought) / (1 - max_sampled_share)))
    return [*brought, *(sampled[at * len(sampled) // num] for at in range(num))]


def numbers_of(chosen: list[Chosen], sampled: list[ScoredAnswer], *, by_reward: bool = False) -> dict[str, float]:
    """Counts what became of the prompts to train on, for metrics.json and the gate."""
    margins = [one.margin for one in chosen if one.pair]
    of_answers = _reward_numbers(chosen) if by_reward else {"right_answer_rate": _share_of_right(sampled)}
    outcomes = Counter(one.outcome for one in chosen)
    numbers = {
        "num_prompts": len(chosen),
        "num_sampled_answers": len(sampled),
        **of_answers,
        "pair_yield": len(margins) / max(1, len(chosen)),
        **{f"num_prompts_with_{outcome}": outcomes[outcome] for outcome in OUTCOMES[1:]},
        "num_sampled_pairs": len(margins),
        "num_pairs_with_reference": sum(one.has_reference for one in chosen),
    }
    return numbers | ({"least_margin": min(margins), "mean_margin": sum(margins) / len(margins)} if margins else {})


def _share_of_right(sampled: list[ScoredAnswer]) -> float:
    return sum(one.is_right for one in sampled) / max(1, len(sampled))


def _reward_numbers(chosen: list[Chosen]) -> dict[str, float]:
    """The mean rewards of the chosen and of the rejected answers; nothing without a pair."""
    scores = [one.scores for one in chosen if one.scores]
    if not scores:
        return {}
    best, worst = zip(*scores, strict=True)
    return {"mean_chosen_reward": sum(best) / len(best), "mean_rejected_reward": sum(worst) / len(worst)}


def _lines(asked: list[Asked], groups: list[list[ScoredAnswer]], chosen: list[Chosen]) -> Iterable[dict[str, Any]]:
    """Every sampled answer, for people to look at."""
    for one, group, made in zip(asked, groups, chosen, strict=True):
        shown = [{"text": said(a.text), "score": a.score, "stopped": a.stopped, "fault": a.fault} for a in group]
        yield {"id": one.row["id"], "outcome": made.outcome, "prompt": one.row["prompt"], "answers": shown}


# --- the step ---------------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--model", required=True, help="full model folder, no adapter")
    parser.add_argument("--rows", required=True, help="SFT rows to train on, JSONL: id, prompt, completion")
    parser.add_argument("--references", required=True, help="their references, JSONL: id, references")
    parser.add_argument("--held-out", help="held-out SFT rows, JSONL; where no pairs are brought")
    parser.add_argument("--brought", help="pairs to train on that are brought, JSONL")
    parser.add_argument("--train", required=True, help="output: pairs to train on, JSONL")
    parser.add_argument("--eval", help="output: held-out pairs, JSONL; with --held-out")
    parser.add_argument("--answers", required=True, help="output: the sampled answers with their scores, JSONL")
    parser.add_argument("--metrics", required=True, help="output: metrics, JSON")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    step = config.parse_step(config.SamplePairsStep, args.config, args.overrides)
    names = ("model", "rows", data.REFERENCES, "held_out", "brought")
    with tempfile.TemporaryDirectory() as folder:
        inputs = {name: path for name in names if (path := getattr(args, name))} | bring_prompts(step, Path(folder))
        judge = content.bring_judge(step.validation, Path(folder), step.allowed_prefixes)
        if step.pairs.reward_model:
            judge[REWARD_MODEL] = reward.fetch(step.pairs.reward_model, Path(folder), step.allowed_prefixes)
        elif step.validation.matcher == "none":
            judge[HARM_JUDGE] = judges.fetch(step.validation.judge_model, Path(folder), step.allowed_prefixes)
        outputs = {name: path for name in ("train", "eval", "answers", "metrics") if (path := getattr(args, name))}
        frame.run_step(
            args,
            inputs=inputs | judge,
            outputs=outputs,
            config=step.decisive,
            work=partial(work, inputs, outputs, step, judge),
            reusable=content.is_reusable(step.validation),
        )


def work(
    inputs: dict[str, str],
    outputs: dict[str, str],
    step: config.SamplePairsStep,
    judge: dict[str, str],
    _: Running,
) -> dict[str, float]:
    """Samples, chooses and writes."""
    settings = step.pairs
    asked = read_asked(inputs["rows"], inputs[data.REFERENCES], settings)
    held_out = asked_of(read_jsonl(inputs["held_out"])) if "held_out" in inputs else []
    sampled = sample(inputs["model"], [*asked, *held_out], step, judge)
    groups = [sampled[at : at + settings.num_answers] for at in range(0, len(sampled), settings.num_answers)]
    chosen = [choose(one, group, settings) for one, group in zip([*asked, *held_out], groups, strict=True)]
    pairs = [one.pair for one in chosen[: len(asked)] if one.pair]
    brought = read_jsonl(inputs["brought"]) if "brought" in inputs else []
    train = mixed(pairs, brought, settings.max_sampled_share)
    mine = sampled[: len(asked) * settings.num_answers]
    numbers = numbers_of(chosen[: len(asked)], mine, by_reward=settings.reward_model is not None)
    numbers |= {"num_train_pairs": len(train), "num_brought_pairs": len(brought)}
    write_jsonl(outputs["train"], train)
    if "eval" in outputs:
        write_jsonl(outputs["eval"], [one.pair for one in chosen[len(asked) :] if one.pair])
    write_jsonl(outputs["answers"], _lines([*asked, *held_out], groups, chosen))
    Path(outputs["metrics"]).write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return numbers


if __name__ == "__main__":
    main()
