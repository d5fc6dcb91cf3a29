"""Keeping the best checkpoint: rows are set aside, the best adapter is the result, and a resume changes nothing."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from posttrain import dpo, sft, storage
from posttrain.config import DpoConfig, DpoStep, KeepBest, PipelineConfig, Selection, SftConfig, SftStep
from posttrain.rows.formats import prompt_key, read_jsonl, write_jsonl
from posttrain.step import digests
from posttrain.step.run import Unfinished
from posttrain.train import backend, best, stage
from posttrain.train.checkpoints import Checkpoints
from tests.posttrain.train.forked_ranks import in_ranks

JUDGE = Selection(answer_match="exact", module="tests.posttrain.train.judge_of_small_weights")
SETTINGS = {"max_seq_length": 256, "lora_r": 4, "batch_size": 8, "gradient_accumulation": 1, "learning_rate": 0.01}


def row(number: int, prompt: str) -> dict:
    message = {"role": "user", "content": prompt}
    return {"id": f"{number}", "prompt": [message], "completion": [{"role": "assistant", "content": "Yes."}]}


def test_rows_set_aside_share_no_prompt_with_those_that_are_trained_on():
    rows = [row(number, f"Is thing {number // 2} there?") for number in range(20)]
    trained, aside = best.set_aside(rows, KeepBest(num_rows=3))
    assert len(aside) == 3 and len(trained) == 14
    assert not {prompt_key(one) for one in trained} & {prompt_key(one) for one in aside}
    assert best.set_aside(list(reversed(rows)), KeepBest(num_rows=3))[0] == list(reversed(trained))
    assert best.set_aside(rows, None) == (rows, [])
    with pytest.raises(ValueError, match="num_rows = 10 sets all 10 training prompts aside: lower it"):
        best.set_aside(rows, KeepBest(num_rows=10))


def test_what_nobody_judges_cannot_be_the_best():
    with pytest.raises(ValueError, match=r"sft.keep_best is on, but validation.answer_match is none"):
        PipelineConfig(sft={"keep_best": {}}, validation={"answer_match": "none"})
    with pytest.raises(ValueError, match=r"sft.keep_best is on, but the graph was compiled without it"):
        SftStep(sft={"keep_best": {}})
    sharded = {"keep_best": {}, "parallelism": "fsdp"}
    with pytest.raises(ValueError, match=r"sft.keep_best judges the whole model .* set parallelism to ddp"):
        SftStep(sft=sharded, selection=JUDGE, training={"num_processes": 2})
    with pytest.raises(ValueError, match=r"sft.keep_best judges the whole model"):
        PipelineConfig(sft=sharded, placement={"steps": {"train_sft": {"accelerator_count": 2}}})
    assert SftStep(sft={"keep_best": {}}, selection=JUDGE).decisive.selection == JUDGE


@pytest.fixture
def train(tiny_model, task_api_files, tmp_path):
    """Trains on all rows but 8, of which some are set aside, into a folder of this name; gives it."""
    files = {}
    for kind, name in (("sft", "sft"), ("dpo", "preferences")):
        rows = read_jsonl(task_api_files / f"{name}.jsonl")
        files[kind] = {part: str(tmp_path / f"{kind}-{part}.jsonl") for part in ("train", "eval")}
        write_jsonl(files[kind]["train"], rows[8:])
        write_jsonl(files[kind]["eval"], rows[:8])

    def train(name: str, keep_best: dict | None, *, kind: str = "sft", training: dict | None = None, **changes) -> Path:
        folder = tmp_path / name
        outputs = {output: str(folder / output) for output in ("adapter", "metrics", "curve", "logs")}
        folder.mkdir(exist_ok=True)
        module, section, step_of = {"sft": (sft, SftConfig, SftStep), "dpo": (dpo, DpoConfig, DpoStep)}[kind]
        config = section(**SETTINGS | {"epochs": 3, "keep_best": keep_best} | changes)
        step = step_of(**{kind: config}, training=training or {}, selection=JUDGE)
        checkpoints = Checkpoints(str(folder / "store"), "train", "f" * 64, run_id="run", limit=3)
        module.train(str(tiny_model), files=files[kind], outputs=outputs, step=step, checkpoints=checkpoints)
        return folder

    return train


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics").read_text())


class Training:
    """Stands for a trainer with an adapter of one matrix, whose number is what the step has learned."""

    def __init__(self, folder: Path, scores: dict[int, float], monkeypatch):
        from peft import LoraConfig, get_peft_model
        from torch import nn

        base = nn.Sequential(nn.Linear(2, 2))
        base.name_or_path = str(folder / "base")
        storage.write_bytes(folder / "base" / "config.json", b"{}")
        self.model, self.folder = get_peft_model(base, LoraConfig(r=1, target_modules=["0"])), folder
        self.state = SimpleNamespace(global_step=0, max_steps=4, epoch=1.0, log_history=[])
        step = SimpleNamespace(keep_best=KeepBest(num_checkpoints=4), selection=JUDGE)
        checkpoints = Checkpoints(str(folder), "train", "f" * 64, run_id="run", limit=1)
        monkeypatch.setattr(best.BestCheckpoint, "_scores", lambda *_: [scores[self.state.global_step]])
        self.keeper = best.BestCheckpoint(self, [{}], step, checkpoints)

    def train(self, first: int) -> "Training":
        for step in range(first, 5):
            self.learned().data.fill_(step)
            self.state.global_step = step
            self.keeper.on_step_end(None, self.state, SimpleNamespace(should_training_stop=False))
        self.keeper.restore()
        return self

    def learned(self):
        return self.model.base_model.model[0].lora_B["default"].weight

    def files(self, step: int) -> list[Path]:
        return [*self.folder.rglob(f"step-{step:08}-*.safetensors")]


SCORES = {1: 0.5, 2: 0.7, 3: 0.9, 4: 0.1}


def test_a_damaged_adapter_is_not_kept_but_the_next_best_and_it_is_said(tmp_path, monkeypatch):
    whole = Training(tmp_path, SCORES, monkeypatch).train(1)
    assert (whole.keeper.metrics["kept_step"], whole.learned().max()) == (3, 3)
    assert whole.keeper.metrics["kept_because"].endswith("0.1 at step 4")
    (of_three,), (of_two,) = whole.files(3), whole.files(2)
    of_three.write_bytes(of_two.read_bytes())
    resumed = Training(tmp_path, SCORES, monkeypatch).train(4)
    assert (resumed.keeper.metrics["kept_step"], resumed.learned().max()) == (2, 2)
    assert resumed.keeper.metrics["kept_accuracy"] == 0.7
    assert resumed.keeper.metrics["kept_because"].endswith("; not step 3: its adapter is damaged or gone")
    for step in (1, 2, 3):
        whole.files(step)[0].unlink()
    last = Training(tmp_path, SCORES, monkeypatch).train(4)
    assert (last.keeper.metrics["kept_step"], last.learned().max()) == (4, 4)


@pytest.mark.parametrize("content", ["", "{", '{"3": 0.9}'])
def test_what_was_judged_may_be_damaged_and_the_training_ends_all_the_same(tmp_path, monkeypatch, caplog, content):
    """A resume from the last checkpoint has no step left in which it would judge."""
    whole = Training(tmp_path, SCORES, monkeypatch).train(1)
    (file,) = tmp_path.rglob("accuracies.json")
    file.write_text(content)
    resumed = Training(tmp_path, SCORES, monkeypatch)
    resumed.state.global_step = 4
    resumed.learned().data.copy_(whole.learned().data)
    resumed.keeper.restore()
    assert f"{file} skipped: damaged: " in caplog.text
    assert resumed.keeper.metrics["kept_step"] == 4


def test_two_runs_of_a_training_do_not_take_each_others_adapters(tmp_path, monkeypatch):
    """They agree in all but their rounding, as on GPUs."""
    Training(tmp_path, SCORES, monkeypatch).train(1)
    other = Training(tmp_path, SCORES, monkeypatch)
    other.keeper.judged.clear()
    other.learned().data.fill_(3.5)
    other.state.global_step = 3
    other.keeper.on_step_end(None, other.state, SimpleNamespace(should_training_stop=False))
    assert len(other.files(3)) == 2


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_the_best_checkpoint_is_the_result_and_a_resume_changes_nothing(train, kind):
    keep = {"num_checkpoints": 3, "num_rows": 8}
    whole = train("whole", keep, kind=kind)
    metrics = metrics_of(whole)
    steps = metrics["total_steps"]
    assert metrics["kept_step"] == steps // 3 < steps
    assert "best of 3 checkpoints on 8 rows set aside" in metrics["kept_because"]
    assert f"kept step {steps // 3}" in (whole / "curve").read_text()
    log = [json.loads(line) for line in (whole / "logs" / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if best.ACCURACY in entry] == [steps // 3, steps * 2 // 3, steps]
    (stored,) = (whole / "store").rglob(f"step-{steps // 3:08}-*.safetensors")
    assert stored.read_bytes() == (whole / "adapter" / best.WEIGHTS).read_bytes()
    with pytest.raises(Unfinished):
        train("resumed", keep, kind=kind, training={"leave_at": 0.6})
    resumed = train("resumed", keep, kind=kind)
    assert digests.digest(resumed / "adapter") == digests.digest(whole / "adapter")
    assert metrics_of(resumed) == metrics
    early = metrics_of(train("early", keep | {"patience": 1}, kind=kind))
    assert early["total_steps"] == steps * 2 // 3
    assert early["kept_step"] == metrics["kept_step"]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_of_two_ranks_the_first_judges_and_both_keep_the_same(train, kind, tmp_path):
    keep = {"num_checkpoints": 2, "num_rows": 8}
    changes = {"kind": kind, "epochs": 1, "batch_size": 4, "gradient_accumulation": 2}
    backend.prepare()
    first, second = in_ranks(lambda rank: weights_of(train, "two", keep, **changes))
    metrics, alone = metrics_of(tmp_path / "two"), metrics_of(train("one", keep, **changes))
    assert metrics["kept_step"] == alone["kept_step"] == metrics["total_steps"] // 2
    (stored,) = (tmp_path / "two" / "store").rglob(f"step-{metrics['kept_step']:08}-*.safetensors")
    assert stored.read_bytes() == (tmp_path / "two" / "adapter" / best.WEIGHTS).read_bytes()
    assert first == second and metrics["eval_loss"] == pytest.approx(alone["eval_loss"], rel=0.03)


def weights_of(train, *arguments, **changes) -> str:
    """Trains, and gives the digest of the weights that this rank ends with."""
    ended = []

    def look(trainer, *args, **kwargs) -> None:
        weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
        ended.append(hashlib.sha256(b"".join(weight.detach().numpy().tobytes() for weight in weights)).hexdigest())
        write(trainer, *args, **kwargs)

    write, stage.write_results = stage.write_results, look
    train(*arguments, **changes)
    return ended[0]
