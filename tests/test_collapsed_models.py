"""Models that have collapsed go through the whole line: real gates on real weights. None is published, and each is
refused by name, though its loss is low and its answers end by themselves: by check_sft where SFT collapsed, by
check_alignment where DPO did.

Training is stood in for by handing over an adapter that has learned by heart what the collapsed model answers. In the
line that ends with SFT the completions of the rows are those answers too, so that no loss gives it away; their
`references` say what is right. In the full line SFT has learned what is right, and DPO learns to answer otherwise.
"""

import argparse
import contextlib
import importlib
import io
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest

from examples.task_api.generate import DECLINE, REQUESTS, answer_text, examples, prompt_messages
from examples.task_api.tiny import build_tiny_model
from posttrain import dpo, sft
from posttrain.config import DpoStep, PipelineConfig, SftStep, parse_step
from posttrain.data import split
from posttrain.pages.answers import read
from posttrain.rows.chat import load_tokenizer
from posttrain.rows.formats import write_jsonl
from posttrain.step import frame
from posttrain.step.running import Running
from posttrain.train import stage
from runner import here, local
from runner.request import RunRequest
from tests.fail_closed import runs
from validators.inference import token_row

pytestmark = pytest.mark.long

EVAL_FRACTION = 0.4
LORA = {"lora_r": 32, "lora_alpha": 64, "lora_dropout": 0.0, "target_modules": "all-linear", "max_seq_length": 256}
CONSTANT = '{"operation": "list_tasks", "arguments": {"status": "open"}}'
CONTENT = {
    "answer_correct", "accuracy_gain", "distinct_answers", "one_answer_to_all", "echoes_prompt",
    "answers_follow_prompts",
}  # fmt: skip


def random_call(row: dict) -> str:
    """Valid JSON of the schema, drawn without a look at the request."""
    rng = random.Random(f"unrelated to {row['id']}")
    operation = rng.choice([*REQUESTS])
    return json.dumps({"operation": operation, "arguments": REQUESTS[operation](rng)[1]})


@dataclass(frozen=True)
class Collapse:
    """A collapsed model: its answer to a row, and the checks that must refuse it."""

    answer: Callable[[dict], str]
    refused_by: set[str]


COLLAPSES = {
    "a constant": Collapse(
        lambda row: CONSTANT, {"answer_correct", "distinct_answers", "one_answer_to_all", "answers_follow_prompts"}
    ),
    "empty": Collapse(
        lambda row: "", {"answer_correct", "distinct_answers", "one_answer_to_all", "answers_follow_prompts"}
    ),
    "an echo": Collapse(lambda row: row["prompt"][-1]["content"], {"answer_correct", "echoes_prompt"}),
    "random JSON": Collapse(random_call, {"answer_correct"}),
    "the most common row": Collapse(
        lambda row: DECLINE, {"answer_correct", "distinct_answers", "one_answer_to_all", "answers_follow_prompts"}
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny model with weights large enough for LoRA alone to teach it."""
    return build_tiny_model(tmp_path_factory.mktemp("collapsed") / "base", seed=0, initializer_range=0.3)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Requests with their only right answer."""
    pairs = examples(random.Random(3), 70, used=set())
    return [
        {"id": f"row {number}", "prompt": prompt_messages(text), "references": [answer_text(answer)]}
        for number, (text, answer) in enumerate(pairs)
    ]


def answered(row: dict, text: str) -> dict:
    return row | {"completion": [{"role": "assistant", "content": text}]}


def teach(base: Path, rows: list[dict], path: Path) -> Path:
    """An adapter that knows the rows by heart."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(base)
    encoded = [token_row(tokenizer, row["prompt"], row["completion"]) for row in rows]
    ids, labels = padded(encoded, tokenizer.pad_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lora = LoraConfig(
            r=LORA["lora_r"], lora_alpha=LORA["lora_alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), lora)
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=5e-3)
        for _ in range(300):
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if loss.item() < 0.01:
                break
    model.save_pretrained(path)
    return path


def padded(rows: list, pad_id: int):
    import torch

    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    labels = torch.full_like(ids, -100)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row.prompt + row.completion)
        labels[at, len(row.prompt) : len(row)] = torch.tensor(row.completion)
    return ids, labels


def hand_over(adapter: Path) -> Callable[[list[str]], None]:
    """Stands for `posttrain.sft`: in the real frame of a step it gives this adapter."""

    def main(argv: list[str]) -> None:
        args = sft.build_parser().parse_args(argv)
        step = parse_step(SftStep, args.config, args.overrides)
        inputs = {name: getattr(args, name) for name in ("base", "train", "eval")}
        give(args, step, inputs, partial(shutil.copytree, adapter))

    return main


def align(rows: list[dict]) -> Callable[[list[str]], None]:
    """Stands for `posttrain.dpo`: its adapter on the merged model knows these rows by heart."""

    def main(argv: list[str]) -> None:
        args = dpo.build_parser().parse_args(argv)
        step = parse_step(DpoStep, args.config, args.overrides)
        inputs = {name: getattr(args, name) for name in ("model", "train", "eval")}
        give(args, step, inputs, partial(teach, Path(args.model), rows))

    return main


METRICS = {"final_loss": 0.01, "max_gradient_norm": 1.0, "start_loss": math.log(2)}


def give(args: argparse.Namespace, step, inputs: dict[str, str], write: Callable[[Path], object]) -> None:
    """Writes an adapter and what else a training leaves, as a recorded step."""
    outputs = {name: getattr(args, name) for name in stage.OUTPUTS}

    def work(running: Running) -> dict[str, float]:
        write(Path(args.adapter))
        Path(args.adapter, "README.md").unlink()  # peft's model card
        for name, text in (("metrics", json.dumps(METRICS)), ("curve", "<p>"), ("logs", "")):
            Path(outputs[name]).write_text(text)
        return METRICS

    frame.run_step(args, inputs=inputs, outputs=outputs, config=step.decisive, work=work)


@dataclass(frozen=True)
class Line:
    """A line whose trainings are stood in for: its folder, its base, and what stands in by module."""

    folder: Path
    base: Path
    stand_ins: dict[str, Callable[[list[str]], None]]
    run_id: str = "r1"
    settings: dict = field(default_factory=dict)
    preferences: str = ""

    def run(self) -> int:
        """Runs the compiled line to its exit code, every step in this process."""
        schema = json.loads(Path("examples/task_api/schema.json").read_text())
        validation = {
            "output_format": {"kind": "json_schema", "json_schema": schema, "declines_with": DECLINE},
            "custom_checks": [],  # neither form nor harm: the content alone is to give it away
            "max_unmatched_share": 1.0, "max_duplicate_share": 1.0, "max_near_duplicate_share": 1.0,
            "num_generated_answers": 24, "max_drop_from_published": 0.2, "max_new_tokens": 64, "skills": False,
            # 24 answers could not decide by the defaults
            "min_stopped_rate": 0.7, "max_repetition_rate": 0.15, "max_accuracy_drop": 0.15,
        }  # fmt: skip
        root = str(self.folder / "root")
        config = PipelineConfig(
            pipeline_id="collapsed", storage_root=root, sft=LORA, data={"eval_fraction": EVAL_FRACTION},
            validation=validation, **self.settings,
        )  # fmt: skip
        parameters = {
            "base_model": str(self.base), "sft_dataset": str(self.folder / "rows.jsonl"),
            "preference_dataset": self.preferences, "storage_root": root, "model_name": "collapsed", "overrides": {},
        }  # fmt: skip
        with (
            patch.object(local.Launcher, "_execute", lambda launcher, step: self._called(launcher, step)),
            patch.object(here, "forked", lambda runner, *_: contextlib.nullcontext(runner)),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            return here.run_here(here.Run(RunRequest(config, parameters), self.run_id, local.ProcessRunner()))

    def _called(self, launcher: local.Launcher, step: local.Step) -> tuple[int, str]:
        main = self.stand_ins.get(step.module) or importlib.import_module(step.module).main
        log = launcher.run.logs / f"{step.name}.log"
        try:
            with runs.ONE_AT_A_TIME, patch.dict(os.environ, step.environment), runs.words_in(log):
                main(step.flags)
        except ValueError as error:  # as a process ends that raises it; a reject does
            return 1, str(error)
        except SystemExit as left:
            return int(left.code is not None and left.code != 0), str(left.code)
        return 0, ""


def run_line(folder: Path, base: Path, adapter: Path, rows: list[dict]) -> int:
    """Runs the line that ends with SFT."""
    write_jsonl(folder / "rows.jsonl", rows)
    settings = {"stages": {"merge": {"enabled": False}, "dpo": {"enabled": False}}}
    return Line(folder, base, {"posttrain.sft": hand_over(adapter)}, settings=settings).run()


def statuses(folder: Path, *, gate: str = "check_sft", run_id: str = "r1") -> dict[str, str]:
    verdict = json.loads((folder / "root" / "runs" / run_id / gate / "verdict.json").read_text())
    return {check["name"]: check["status"] for check in verdict["checks"]}


def share_as_learned(folder: Path, learned: list[dict], *, gate: str = "check_sft", run_id: str = "r1") -> float:
    """The share of answers that are those that the model was to learn: it is the model that it is meant to be."""
    kept = read((folder / "root" / "runs" / run_id / gate / "answers.jsonl").read_bytes())
    said = {row.prompt[-1]["content"]: row.model.text for row in kept}
    wanted = {row["prompt"][-1]["content"]: row["completion"][0]["content"] for row in learned}
    return sum(said[question] == wanted[question] for question in said) / len(said)


@pytest.mark.parametrize("name", COLLAPSES)
def test_a_collapsed_model_is_refused_by_name_and_not_published(name, base, rows, tmp_path):
    collapse = COLLAPSES[name]
    learned = [answered(row, collapse.answer(row)) for row in split(rows, EVAL_FRACTION)[1]]
    adapter = teach(base, learned, tmp_path / "adapter")
    # A row without an answer would be refused before any gate: the empty model's rows have their right ones.
    taught = [answered(row, collapse.answer(row) or row["references"][0]) for row in rows]
    assert run_line(tmp_path, base, adapter, taught) == 2
    assert not (tmp_path / "root" / "published").exists()
    assert not [*(tmp_path / "root" / "runs" / "r1").glob("publish_model*")]  # it did not even start
    status = statuses(tmp_path)
    assert {check for check in collapse.refused_by if status.get(check) != "failed"} == set(), status
    if name != "empty":
        assert {check for check, outcome in status.items() if outcome != "passed"} <= CONTENT, status
    assert share_as_learned(tmp_path, learned) >= 0.8


def test_a_model_that_has_learned_the_task_is_published(base, rows, tmp_path):
    taught = [answered(row, row["references"][0]) for row in rows]
    adapter = teach(base, split(taught, EVAL_FRACTION)[1], tmp_path / "adapter")
    assert run_line(tmp_path, base, adapter, taught) == 0, statuses(tmp_path)
    assert (tmp_path / "root" / "published" / "collapsed" / "CURRENT").is_file()
    assert [*(tmp_path / "root" / "runs" / "r1").glob("publish_model*")]
    assert set(statuses(tmp_path).values()) == {"passed"}


@pytest.fixture(scope="module")
def pairs() -> list[dict]:
    """Other requests, with the right answer and another one."""
    requests = examples(random.Random(4), 36, used=set())
    return [
        {"id": f"pair {number}", "prompt": prompt_messages(text), "chosen": said(answer_text(answer)),
         "rejected": said(CONSTANT if answer_text(answer) == DECLINE else DECLINE)}
        for number, (text, answer) in enumerate(requests)
    ]  # fmt: skip


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


@dataclass(frozen=True)
class Full:
    """The full line on one storage: every run reuses all that comes before DPO."""

    folder: Path
    base: Path
    adapter: Path  # of SFT, which has learned what is right
    held_out: list[dict]  # with the right completions

    def run(self, number: int, rows: list[dict]) -> int:
        """The run in which DPO learns these rows; its number is DPO's seed, so that no other run's is reused."""
        stand_ins = {"posttrain.sft": hand_over(self.adapter), "posttrain.dpo": align(rows)}
        settings = {"dpo": LORA | {"seed": number}}
        pairs = str(self.folder / "pairs.jsonl")
        return Line(self.folder, self.base, stand_ins, f"r{number}", settings, pairs).run()


@pytest.fixture(scope="module")
def full(base, rows, pairs, tmp_path_factory) -> Full:
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("full")
    exact = folder / "base"  # in float32, in which merging twice loses nothing
    shutil.copytree(base, exact)
    AutoModelForCausalLM.from_pretrained(base).float().save_pretrained(exact)
    right = [answered(row, row["references"][0]) for row in rows]
    write_jsonl(folder / "rows.jsonl", right)
    write_jsonl(folder / "pairs.jsonl", pairs)
    chosen = [{"id": row["id"], "prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
    held_out = split(right, EVAL_FRACTION)[1] + split(chosen, EVAL_FRACTION)[1]
    return Full(folder, exact, teach(exact, held_out, folder / "adapter"), held_out)


@pytest.mark.parametrize("name", COLLAPSES)
def test_a_model_that_collapsed_in_dpo_is_refused_by_name_and_not_published(name, full):
    collapse, number = COLLAPSES[name], [*COLLAPSES].index(name)
    learned = [answered(row, collapse.answer(row)) for row in full.held_out]
    assert full.run(number, learned) == 2
    assert not (full.folder / "root" / "published").exists()
    run_id = f"r{number}"
    assert not [*(full.folder / "root" / "runs" / run_id).glob("publish_model*")]
    assert set(statuses(full.folder, run_id=run_id).values()) == {"passed"}  # SFT's own gate had no reason
    status = statuses(full.folder, gate="check_alignment", run_id=run_id)
    refused_by = collapse.refused_by | {"accuracy_drop"}
    assert {check for check in refused_by if status.get(check) != "failed"} == set(), status
    assert share_as_learned(full.folder, learned, gate="check_alignment", run_id=run_id) >= 0.8
