"""Gate check_champion: is the published model no worse than the current version, on the same held-out rows?

receipt of publish_model, model folder (an adapter's: and its base's), held-out rows -> verdict, both models' answers

Where no version is current, or the current one is this very model, there is nothing to compare, and nothing is loaded.
A model that was current before is not made current again by a run: somebody has moved on from it, or rolled back.
Where nobody judges the content of answers (`answer_match: none`), the loss on the held-out rows is compared instead.

    python -m validators.champion --step check_champion --storage-root DIR --receipt receipt.json --model DIR
        --sft-eval rows.jsonl --preference-eval pairs.jsonl --verdict verdict.json --report report.html
        --summary summary.md --answers answers.jsonl --metrics metrics.json --passed passed
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from posttrain import config, promote, storage
from posttrain.config import ChampionLimits, CheckChampionStep
from posttrain.make_current import FOLLOWS
from posttrain.promote import Promotion
from posttrain.publish import MANIFEST, PROVENANCE, Manifest, read_manifest
from posttrain.step import kfp_io, published
from posttrain.step.provenance import Provenance
from posttrain.step.running import Running
from posttrain.storage import layout
from posttrain.verdict import Check, finite, holds
from validators import answers, checks, content, held_out, inference, intervals, measuring, paired
from validators.answers import JudgedAnswer
from validators.matching import pairwise
from validators.session import NO_ROW_FITS, Session

Logprobs = dict[str, tuple[float, int]]  # by row, of its answer: sum in nats, number of tokens

INPUTS = ("receipt", "base", "model", *held_out.KINDS)
ADAPTER = "adapter_config.json"
BY_HAND = "make it current by hand with `python -m posttrain.promote`"
KEEP = f"The version stays published and is not made current: train longer or on more rows, or {BY_HAND}."
RESTORE = "restore it, or make another version current with `python -m posttrain.promote`"


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers that a judgement needs. None: not asked, or could not be measured."""

    model_answers: list[JudgedAnswer] | None = None
    champion_answers: list[JudgedAnswer] | None = None
    model_logprobs: Logprobs | None = None
    champion_logprobs: Logprobs | None = None


class Measurer:
    """Asks the champion, then the challenger, in one process."""

    def __init__(self, folders: dict[str, Path], step: CheckChampionStep, rows: dict[str, list[dict]]):
        self.folders, self.step, self.rows = folders, step, rows
        self.session = Session(step.validation)
        self.asked = answers.choose_rows(held_out.all_of(rows), step.validation.num_generated_answers)

    def parts(self) -> measuring.Parts:
        """The measurements, in their order."""
        parts: measuring.Parts = {}
        for name in ("champion", "model"):
            parts[f"{name}_loads"] = partial(self.load, name)
            parts[f"{name}_answers_generated"] = partial(self.answers, name)
            if self.step.validation.matcher == "none":
                parts[f"{name}_loss_measured"] = partial(self.logprobs, name)
        return parts

    def load(self, name: str) -> None:
        """Loads a model, or an adapter on the base of this run."""
        path = self.folders[name]
        if (path / ADAPTER).exists():
            rank = json.loads((path / ADAPTER).read_text(encoding="utf-8"))["r"]
            self.session.load(self.folders["base"], path, rank=rank, name=name)
        else:
            self.session.load(path, name=name)

    def answers(self, name: str) -> dict[str, list[JudgedAnswer]]:
        """The greedy answers of the loaded model."""
        return {f"{name}_answers": self.session.answer([row["prompt"] for row in self.asked])}

    def logprobs(self, name: str) -> dict[str, Logprobs]:
        """The log-probabilities of the held-out answers, without those that are too long for this model's tokenizer."""
        model, tokenizer = self.session.model, self.session.tokenizer
        sections = {"sft_eval": ("completion", self.step.sft), "preference_eval": ("chosen", self.step.dpo)}
        fitting = {
            f"{kind} {at}": rendered
            for kind, (key, section) in sections.items()
            for at, row in enumerate(self.rows[kind])
            for rendered in inference.token_rows(tokenizer, [row], key, max_length=section.max_seq_length)
        }
        if not fitting:
            num_rows = sum(map(len, self.rows.values()))
            raise ValueError(NO_ROW_FITS.format(num_rows, "held-out rows", "max_seq_length"))
        logprobs = inference.sequence_logprobs(model, tokenizer, list(fitting.values()), name=name)
        return {f"{name}_logprobs": dict(zip(fitting, logprobs, strict=True))}


def fetch(champion: Promotion, uri: str, folder: Path) -> Path:
    """Returns the local folder of the version that is current; one that lies elsewhere is downloaded to `folder`.

    Raises:
        ValueError: it is gone, or its files are not those that were made current.
    """
    manifest = _manifest_of(uri)
    if manifest.sha256 != champion.sha256:
        raise ValueError(
            f"{uri}/{MANIFEST}: names model {manifest.sha256}, but {champion.sha256} was made current; {RESTORE}"
        )
    is_here = storage.kind(uri) == "local"
    path, known = (storage.local_path(uri), {}) if is_here else (folder, storage.download_folder(uri, folder))
    if faults := published.file_faults(manifest, str(path), known=known):
        raise ValueError(f"{uri}: is not the version that was made current: {faults[0]}; {RESTORE}")
    return path


def _manifest_of(uri: str) -> Manifest:
    try:
        manifest = read_manifest(uri)
    except ValueError as error:
        raise ValueError(f"{uri}/{MANIFEST}: is not a manifest, though the version is current; {RESTORE}") from error
    if manifest is None:
        raise ValueError(f"{uri}/{MANIFEST}: is missing, though the version is current; {RESTORE}")
    return manifest


def check_base(folder: Path, sha256: str | None) -> None:
    """Refuses a champion that is an adapter of another base: on this run's, it would answer worse than it does.

    Args:
        sha256: of the base of this run, where an adapter is published.

    Raises:
        ValueError: the adapter's base is not the one of this run.
    """
    if not (folder / ADAPTER).exists():
        return
    chain = Provenance.model_validate_json((folder / PROVENANCE).read_bytes())
    bases = {link.inputs.get("base") for link in chain.links if chain.sha256 in link.outputs.values()}
    if sha256 is None or bases != {sha256}:
        raise ValueError(
            "the current version is an adapter for another base than this run's, and cannot be compared: "
            f"compare them yourself, and {BY_HAND}"
        )


def settled(history: list[Promotion], sha256: str) -> Check | None:
    """The check where no model needs to be asked; None where the champion is to be compared."""
    if not history:
        return holds("nothing_to_compare", True, detail="no version of this name was current before")
    *earlier, champion = history
    if champion.sha256 == sha256:
        return holds("nothing_to_compare", True, detail=f"the current version, {champion.version}, is this very model")
    if (past := next((one for one in reversed(earlier) if one.sha256 == sha256), None)) is None:
        return None
    since = history[past.number]
    return holds(
        "never_current_before", False,
        detail=f"this model was current by promotion {past.number}, until {since.by} made {since.version} current: "
        f"{since.reason}",
        remedy=f"A run does not undo that: {BY_HAND}.",
    )  # fmt: skip


def judge(numbers: Numbers, answered: content.Content, limits: ChampionLimits, *, version: str) -> list[Check]:
    """Pure: the same numbers and limits give the same checks."""
    if limits.matcher == "none":
        return [loss_check(numbers.champion_logprobs, numbers.model_logprobs, limits, version=version)]
    drop = paired.paired_difference(
        "drop_from_published", answered.scores.get("before"), answered.scores.get("model"), "<=",
        limits.max_drop_from_published, confidence=limits.confidence,
        detail=f"below version {version}, which is current",
        more_rows_by=answers.more_answers(answered.model, limits), remedy=KEEP,
    )  # fmt: skip
    if limits.matcher == "judge":
        return [drop, pairwise.discerning_check(answered.scores_of_wrong, confidence=limits.confidence)]
    return [drop]


def loss_check(champion: Logprobs | None, model: Logprobs | None, limits: ChampionLimits, *, version: str) -> Check:
    """By how much the held-out loss lies above the champion's, on the rows that fit both, row by row."""
    rows = sorted((champion or {}).keys() & (model or {}).keys())
    return intervals.ratio(
        "loss_above_published",
        [champion[row][0] - model[row][0] for row in rows],
        [float(model[row][1]) for row in rows],
        "<=", limits.max_loss_above_published, confidence=limits.confidence,
        detail=f"nats per token above version {version}, which is current; nobody judges the content of answers",
        remedy=KEEP,
    )  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--receipt", required=True, help="receipt of publish_model, JSON")
    parser.add_argument("--base", help="folder of the base model, where an adapter was published")
    parser.add_argument("--model", required=True, help="folder of the model that was published")
    held_out.add_flags(parser)
    checks.add_gate_flags(parser, with_answers=True)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = held_out.parse_args(build_parser(), argv)
    step = config.parse_step(CheckChampionStep, args.config, args.overrides)
    inputs = {name: getattr(args, name) for name in INPUTS if getattr(args, name)}
    with tempfile.TemporaryDirectory() as folder:
        inputs |= content.bring_judge(step.validation, Path(folder), step.allowed_prefixes)
        work = partial(decide, inputs, step, Path(folder))
        # Which version is current is not an input that a fingerprint could hold.
        checks.run_gate(args, inputs=inputs, config=step, work=work, reusable=False)


def decide(inputs: dict[str, str], step: CheckChampionStep, folder: Path, running: Running) -> checks.GateVerdict:
    """Finds the champion, measures both models and judges.

    Raises:
        ValueError: the receipt is not of this model; the champion is gone or changed, or cannot be loaded in this run.
    """
    receipt = json.loads(Path(inputs["receipt"]).read_text(encoding="utf-8"))
    if receipt["sha256"] != running.inputs["model"]:
        raise ValueError(f"{inputs['receipt']}: names another model than {inputs['model']}; pass the one it is for")
    versions = layout.versions(running.storage_root, step.publish_root, receipt["model_name"])
    history = promote.read_history(versions)
    follows = {FOLLOWS: float(len(history))}
    if check := settled(history, receipt["sha256"]):
        return checks.GateVerdict(gate=running.step, subject=running.inputs, checks=(check,), numbers=follows)
    version = history[-1].version
    path = fetch(history[-1], storage.join(versions, version), folder / "champion")
    check_base(path, running.inputs.get("base"))
    verdict = compare(inputs | {"champion": str(path)}, step, running, version=version)
    return verdict.model_copy(update={"numbers": verdict.numbers | follows})


def compare(inputs: dict[str, str], step: CheckChampionStep, running: Running, *, version: str) -> checks.GateVerdict:
    """Asks both models, and judges; `version`: the champion's."""
    limits = step.validation
    folders = {name: Path(inputs[name]) for name in ("base", "champion", "model") if name in inputs}
    rows = held_out.read(inputs, step, folders.get("base", folders["model"]))
    measurer = Measurer(folders, step, rows)
    measured = measuring.in_order(measurer.parts(), checks.timeouts(limits))
    numbers = measured.read(Numbers)
    answered, scoring = content.score(
        content.Content(
            references=content.references_by_row(measurer.asked, held_out.all_of(rows)),
            model=numbers.model_answers,
            before=numbers.champion_answers,
        ),
        limits,
        inputs.get(content.JUDGE),
    )
    return checks.GateVerdict(
        gate=running.step,
        subject=running.inputs,
        checks=(*judge(numbers, answered, limits, version=version), *(measured | scoring).failures),
        numbers=numbers_of(answered),
        confidence=limits.confidence,
        answer_match=limits.matcher,
        seconds=measured.seconds | scoring.seconds,
        answers=content.shown(answered),
    )


def numbers_of(answered: content.Content) -> dict[str, float]:
    """Numbers that the verdict shows beside its checks; `before_` is the champion's."""
    sides = {"": answered.model, "before_": answered.before}
    rates = {prefix + name: rate for prefix, side in sides.items() for name, rate in answers.rates(side).items()}
    return finite(rates | content.numbers_of(answered))


if __name__ == "__main__":
    main()
