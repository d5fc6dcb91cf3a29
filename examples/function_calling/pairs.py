"""Compares DPO on the brought pairs alone with DPO on sampled ones too, from the same merged SFT model.

    python -m examples.function_calling.pairs --run runs/function_calling/artifacts/RUN_ID --seed 0

artifacts of a finished run of this example -> right answers to all held-out questions of both models, McNemar's test

Each piece (references, sampling, two trainings and merges, answers) is kept in the output folder; the next call goes on
with the first that is missing. `--until` ends after one of them.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from posttrain.config import PairsConfig, SamplingLimits, load_config
from posttrain.rows.formats import read_jsonl
from validators import content, measuring
from validators.paired import mcnemar
from validators.session import Session

CONFIG = Path(__file__).with_name("pipeline_config.yaml")
PIECES = ("references", "sample", "brought", "mixed", "answers")
SIDES = ("brought", "mixed")


@dataclass(frozen=True)
class Comparison:
    """One seed of the comparison, in a folder of its own."""

    run: Path  # artifacts of the finished run
    folder: Path
    seed: int
    num_answers: int

    def step(self, module: str, name: str, config: dict, **paths: Path | str) -> None:
        """Runs a step as a command, unless its last output is there."""
        *_, last = paths.values()
        if Path(last).exists():
            return
        flags = {"step": name, "storage-root": self.folder / "store", "config": json.dumps(config)}
        flags |= {key.replace("_", "-"): path for key, path in paths.items()}
        command = [
            sys.executable,
            "-m",
            module,
            *(part for key, value in flags.items() for part in (f"--{key}", value)),
        ]
        subprocess.run(list(map(str, command)), check=True)

    def out(self, *names: str) -> Path:
        return self.folder.joinpath(*names)

    @property
    def merged(self) -> Path:
        return self.run / "merge_sft" / "model"

    def references(self) -> None:
        """Splits the SFT rows as the run did, and keeps what counts as right."""
        config = load_config(CONFIG)
        names = ("eval", "statistics", "manifest", "train", "references")
        paths = {name: self.out("data", name) for name in names}
        data = {"data": config.data.model_dump(mode="json", exclude_none=True)}
        self.step("posttrain.data", "prepare_sft_data", data, dataset=config.sft_dataset, kind="sft", **paths)

    def sample(self) -> None:
        config = load_config(CONFIG)
        settings = PairsConfig(num_answers=self.num_answers, seed=self.seed)
        limits = config.validation.model_dump(mode="json", include=set(SamplingLimits.model_fields), exclude_none=True)
        self.step(
            "validators.sampling",
            "sample_pairs",
            {"pairs": settings.model_dump(mode="json", exclude_none=True), "validation": limits},
            model=self.merged,
            rows=self.out("data", "train"),
            references=self.out("data", "references"),
            brought=self.run / "prepare_preferences" / "train",
            answers=self.out("sampled", "answers"),
            metrics=self.out("sampled", "metrics"),
            train=self.out("sampled", "train"),
        )

    def train(self, side: str) -> None:
        """Trains and merges; both sides with the settings of the example and the seed."""
        dpo = load_config(CONFIG, [f"dpo.seed={self.seed}"]).dpo.model_dump(mode="json", exclude_none=True)
        train = self.run / "prepare_preferences" / "train" if side == "brought" else self.out("sampled", "train")
        outputs = {name: self.out(side, name) for name in ("metrics", "curve", "logs", "adapter")}
        held_out = self.run / "prepare_preferences" / "eval"
        self.step(
            "posttrain.dpo", f"train_dpo_{side}", {"dpo": dpo}, model=self.merged, train=train, eval=held_out, **outputs
        )
        merged = {"info": self.out(side, "info"), "metrics": self.out(side, "merge"), "model": self.out(side, "model")}
        self.step("posttrain.merge", f"merge_{side}", {}, base=self.merged, adapter=outputs["adapter"], **merged)

    def answers(self) -> dict[str, list[float]]:
        """Scores of all held-out questions by model."""
        limits, rows = load_config(CONFIG).validation, read_jsonl(self.out("data", "eval"))
        prompts, accepted = [row["prompt"] for row in rows], content.references_by_row(rows, rows)
        scores = {}
        for side, model in {"sft": self.merged, **{side: self.out(side, "model") for side in SIDES}}.items():
            judged = measuring.in_order(
                {"answers": lambda m=model: answer(m, prompts, limits)}, measuring.Timeouts(3600)
            )
            answers = judged.read(Answers).answers
            scored, _ = content.score(content.Content(references=accepted, model=answers), limits)
            scores[side] = scored.scores["model"]
        self.out("scores.json").write_text(json.dumps(scores))
        return scores


@dataclass(frozen=True)
class Answers:
    """The answers as they come from the measuring process."""

    answers: list[content.JudgedAnswer]


def answer(model: Path, prompts: list, limits) -> dict:
    """Greedy answers of one model, in a process of its own."""
    session = Session(limits)
    session.load(model)
    return {"answers": session.answer(prompts)}


def print_result(scores: dict[str, list[float]]) -> None:
    """Right answers of each model, and whether the two alignments differ by more than chance."""
    for name, some in scores.items():
        print(f"{name:8} {sum(score == 1.0 for score in some)} of {len(some)} right")
    pairs = [*zip(scores["mixed"], scores["brought"], strict=True)]
    gained, lost = sum(one > other for one, other in pairs), sum(one < other for one, other in pairs)
    p = mcnemar(gained, lost)
    print(f"with sampled pairs: {gained} more right, {lost} no longer; McNemar's exact test p = {p:.3f}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="artifacts of a finished run of the example")
    parser.add_argument("--output", type=Path, default=Path("build/pairs"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-answers", type=int, default=8, help="answers sampled for each question")
    parser.add_argument("--until", choices=PIECES, default=PIECES[-1], help="the last piece to do now")
    args = parser.parse_args(argv)
    one = Comparison(args.run.absolute(), args.output.absolute() / f"seed-{args.seed}", args.seed, args.num_answers)
    for piece in PIECES[: PIECES.index(args.until) + 1]:
        if piece == "answers":
            print_result(one.answers())
        elif piece in SIDES:
            one.train(piece)
        else:
            getattr(one, piece)()
    return 0


if __name__ == "__main__":
    sys.exit(main())
