"""A file in which the model is served is published only if its own engine answers as the merged model does."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from posttrain.config import RUN_ID_ENV, CheckExportStep
from posttrain.rows import chat
from posttrain.serving import export, formats
from posttrain.verdict import Check, Verdict
from tests.tool_chat import ASKED, CALL, CALLS, TEMPLATE, TOOL, WRITTEN, model_that_calls
from validators import export as gate
from validators import inference, llama_cpp, serving
from validators.answers import JudgedAnswer
from validators.measuring import Timeouts, in_order

LIMITS = {"answer_match": "exact", "num_generated_answers": 16, "max_new_tokens": 16}


@pytest.fixture
def judge(tmp_path, declining_rows, monkeypatch):
    """A function that exports one model and gives the verdict of the gate on the files, for another model."""
    monkeypatch.setenv(RUN_ID_ENV, "r1")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in declining_rows[:24]))

    def verdict_of(exported: Path, model: Path, kind: str = "q8_0", **limits) -> Verdict:
        export.export(exported, tmp_path / "export", [kind])
        step = CheckExportStep.model_validate(
            {"validation": LIMITS | limits, "export": {"formats": [kind], "max_export_drop": 0.3}}
        )
        outputs = ("verdict", "report", "summary", "answers", "metrics", "passed")
        gate.main(
            [
                "--step", "check_export", "--storage-root", str(tmp_path), "--config", step.model_dump_json(),
                "--export", str(tmp_path / "export"), "--model", str(model), "--sft-eval", str(rows),
                *(part for name in outputs for part in (f"--{name}", str(tmp_path / name))),
            ]
        )  # fmt: skip
        return Verdict.read((tmp_path / "verdict").read_bytes())

    return verdict_of


def statuses(verdict: Verdict) -> dict[str, str]:
    return {check.name: check.status for check in verdict.checks}


@pytest.mark.parametrize(("matcher", "name"), [("exact", "q8_0_drop"), ("none", "q8_0_loss_rise")])
def test_a_file_that_holds_the_model_passes(judge, declining_model, matcher, name):
    verdict = judge(declining_model, declining_model, answer_match=matcher)
    assert verdict.passed, verdict.failed_checks
    assert statuses(verdict).keys() == {"q8_0_stop_drop", name, "q8_0_prompts", "q8_0_chat"}
    assert verdict.numbers["q8_0_same_answers"] == 1


@pytest.mark.parametrize(("matcher", "name"), [("exact", "q8_0_drop"), ("none", "q8_0_loss_rise")])
def test_a_file_that_holds_another_model_fails(judge, declining_model, untaught, matcher, name):
    verdict = judge(untaught, declining_model, answer_match=matcher)
    assert verdict.outcome == "failed"
    assert statuses(verdict)[name] == "failed"


def test_a_file_that_does_not_load_fails(judge, declining_model, monkeypatch):
    monkeypatch.setattr(export.formats, "write", lambda model, folder, kinds: broken(folder, kinds))
    verdict = judge(declining_model, declining_model)
    assert verdict.outcome == "failed"
    assert statuses(verdict)["q8_0_loads"] == "failed"
    assert "q8_0_drop" in [check.name for check in verdict.failed_checks]


def broken(folder: Path, kinds: list[str]) -> None:
    folder.mkdir()
    formats.path_of(folder, kinds[0]).write_bytes(b"GGUF" + bytes(60))


def faults_of(model: Path, tmp_path: Path, *, template: str | None = None) -> dict[str, list[str]]:
    """Returns the faults of prompts, chat endpoint and tool call for a file of a model with another template."""
    source = shutil.copytree(model, tmp_path / "source")
    if template:
        (source / "chat_template.jinja").write_text(template)
    export.export(source, tmp_path / "export", ["f16"])
    prompts = [[{"role": "user", "content": "Add rent: 12."}], [{"role": "user", "content": "Dön?"}]]

    def measure() -> dict[str, list[str]]:
        tokenizer = chat.load_tokenizer(model)
        rendered = [chat.render(tokenizer, prompt) for prompt in prompts]
        with llama_cpp.Server(formats.path_of(tmp_path / "export", "f16")) as server:
            said = server.generate(tokenizer, rendered, max_new_tokens=24, name="f16")
            return {
                "prompts": serving.prompt_faults(server, tokenizer, prompts, rendered),
                "chat": serving.chat_faults(server, tokenizer, prompts, said, limit=24),
                "others": serving.chat_faults(
                    server, tokenizer, prompts, [inference.Answer("x", True, 1)] * 2, limit=24
                ),
            }

    measured = in_order({"asked": measure}, Timeouts(60))
    assert measured.failures == []
    return measured.numbers


class Stub:
    """Answers each request to the chat endpoint with the same message."""

    def __init__(self, **message):
        self.message = message

    def chat(self, prompt, **body) -> dict:
        assert body["tools"] == [TOOL]
        return {"message": self.message}


def test_a_tool_call_comes_back_as_one(tmp_path, declining_model):
    tokenizer = chat.load_tokenizer(model_that_calls(declining_model, tmp_path / "model"))
    prompts = [[{**ASKED, "tools": [TOOL]}]]
    answers = [inference.Answer(WRITTEN, stopped=True, num_tokens=9)]
    asked = (tokenizer, prompts, answers)
    assert serving.call_faults(Stub(tool_calls=[CALL]), *asked, limit=9) == []
    assert "returns the calls []" in serving.call_faults(Stub(content=WRITTEN), *asked, limit=9)[0]
    assert serving.call_faults(Stub(), tokenizer, prompts, [inference.Answer("No.", True, 2)], limit=9) is None


@pytest.fixture(scope="module")
def caller(declining_model, teach, tmp_path_factory) -> Path:
    """Folder of a model that answers one question, which offers a tool, with a call of that tool."""
    folder = tmp_path_factory.mktemp("caller")
    source = model_that_calls(declining_model, folder / "source")
    tokenizer = chat.load_tokenizer(source)
    prompt, answer = chat.split(tokenizer, [OFFERED], [CALLS])
    return teach(source, [inference.TokenRow(prompt, answer)], folder / "model", until=0.002)


OFFERED = {**ASKED, "tools": [TOOL]}


@pytest.mark.long
def test_the_endpoint_of_a_real_file_takes_a_call_out_of_the_text(tmp_path, caller):
    export.export(caller, tmp_path / "export", ["f16"])

    def measure() -> dict[str, list[str]]:
        tokenizer = chat.load_tokenizer(caller)
        prompts, rendered = [[OFFERED]], [chat.render(tokenizer, [OFFERED])]
        with llama_cpp.Server(formats.path_of(tmp_path / "export", "f16")) as server:
            said = server.generate(tokenizer, rendered, max_new_tokens=64, name="f16")
            forced = {"tool_choice": "required"} | serving.words_of(tokenizer, [OFFERED])
            called = server.chat([ASKED], max_tokens=64, **forced)["message"]["tool_calls"]
            return {
                "said": [answer.text for answer in said],
                "prompts": serving.prompt_faults(server, tokenizer, prompts, rendered),
                "call": serving.call_faults(server, tokenizer, prompts, said, limit=64),
                "forced": [one["function"]["name"] for one in called],
            }

    measured = in_order({"asked": measure}, Timeouts(120))
    assert measured.failures == []
    assert measured.numbers == {"said": [WRITTEN], "prompts": [], "call": [], "forced": ["add_task"]}


def test_a_file_that_ends_answers_by_another_token_is_refused(judge, declining_model, declining_rows, monkeypatch):
    write, tokenizer = export.formats.write, chat.load_tokenizer(declining_model)
    _, (first, *_) = chat.split(tokenizer, declining_rows[0]["prompt"], declining_rows[0]["completion"])

    def with_another_end(model: Path, folder: Path, kinds: list[str]) -> None:
        other = shutil.copytree(model, folder.with_name("other"))
        words = {"config": {"eos_token_id": first}, "generation_config": {"eos_token_id": first}}
        words["tokenizer_config"] = {"eos_token": tokenizer.convert_ids_to_tokens(first)}
        for name, changes in words.items():
            file = other / f"{name}.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        write(other, folder, kinds)

    monkeypatch.setattr(export.formats, "write", with_another_end)
    verdict = judge(declining_model, declining_model)
    assert verdict.outcome == "failed" and statuses(verdict)["q8_0_drop"] == "failed", statuses(verdict)


def test_a_file_says_the_same_at_the_chat_endpoint(tmp_path, declining_model, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.delenv("no_proxy", raising=False)
    faults = faults_of(declining_model, tmp_path)
    assert (faults["prompts"], faults["chat"]) == ([], [])
    assert "says" in faults["others"][0]


def test_another_template_in_the_file_is_seen(tmp_path, declining_model):
    faults = faults_of(declining_model, tmp_path, template=TEMPLATE.replace("assistant", "bot"))
    assert faults["prompts"][0].startswith("prompt 1: other text from the chat template, from position")
    assert len(faults["prompts"]) == 2


def test_the_loss_is_that_of_the_first_answers_as_far_as_their_tokens_reach(declining_rows, untaught, monkeypatch):
    tokenizer, step = chat.load_tokenizer(untaught), CheckExportStep()
    asked = SimpleNamespace(tokenizer=tokenizer, step=step, rows={"sft_eval": declining_rows, "preference_eval": []})
    lengths = [len(row.completion) for row in gate.Measurer.rows_within(asked)]
    for most in (sum(lengths[:3]), sum(lengths[:3]) + 1):
        monkeypatch.setattr(gate, "MAX_TOKENS", most)
        assert len([*gate.Measurer.rows_within(asked)]) == 3


def test_a_rare_token_counts_as_the_rarest_that_is_known():
    assert gate.loss([{1: -0.5, 2: -2.0}, {3: -1.0, 4: -1.5}], [1, 9]) == (2.0, 2)


def names(checks: list[Check]) -> set[str]:
    return {check.name for check in checks}


def test_prompts_and_chat_are_asked_of_a_gguf_file_and_a_call_only_where_one_was_made():
    step = CheckExportStep.model_validate({"validation": LIMITS})
    answered = gate.content.Content(references=[], model=None)
    assert names(gate.judge(gate.Numbers(), "fp8", answered, step)) == {"fp8_stop_drop", "fp8_drop"}
    called = gate.judge(gate.Numbers(tool_call={"q8_0": ["no call"]}), "q8_0", answered, step)
    assert names(called) == {"q8_0_stop_drop", "q8_0_drop", "q8_0_prompts", "q8_0_chat", "q8_0_tool_call"}
    assert called[-1].status == "failed"
    judge = {"answer_match": "judge", "match_options": {"judge_model": "/judge"}}
    step = CheckExportStep.model_validate({"validation": LIMITS | judge})
    assert "judge_tells_apart" in names(gate.judge(gate.Numbers(), "fp8", answered, step))


def test_numbers_are_of_each_format_and_of_the_merged_model():
    one = JudgedAnswer([], inference.Answer("a", True, 1), None)
    other = JudgedAnswer([], inference.Answer("b", True, 1), None)
    scores = {"before": [1.0, 0.0], "model": [1.0, 1.0]}
    answered = gate.content.Content(references=[[], []], before=[one, one], model=[one, other], scores=scores)
    lost = gate.content.Content(references=[[], []], before=[one, one], model=None, scores={"before": [1.0, 0.0]})
    numbers = gate.numbers_of({"fp8": answered, "q8_0": lost})
    assert numbers["before_answer_accuracy"] == 0.5
    assert (numbers["fp8_same_answers"], numbers["fp8_answer_accuracy"], numbers["fp8_num_answers"]) == (0.5, 1.0, 2)
    assert numbers["before_num_answers"] == 2 and not [name for name in numbers if name.startswith("q8_0")]


@pytest.mark.parametrize(("matcher", "losses"), [("exact", False), ("none", True)])
def test_every_format_is_asked_by_its_own_engine(declining_rows, untaught, tmp_path, matcher, losses):
    step = CheckExportStep.model_validate(
        {"validation": LIMITS | {"answer_match": matcher}, "export": {"formats": ["q8_0", "fp8"]}}
    )
    parts = gate.Measurer(untaught, tmp_path, step, {"sft_eval": declining_rows[:2], "preference_eval": []}).parts()
    asked = {"model_loads", "model_answers_generated", "q8_0_loads", "q8_0_prompts_compared", "q8_0_answers_generated",
             "fp8_loads", "fp8_answers_generated"}  # fmt: skip
    measured = {"model_loss_measured", "q8_0_loss_measured", "fp8_loss_measured"}
    assert parts.keys() == (asked | measured if losses else asked)


def test_one_file_is_served_at_a_time_with_room_for_the_longest_row(monkeypatch):
    served, closed = [], []
    monkeypatch.setattr(gate.llama_cpp, "Server", lambda file, *, context: served.append((file.name, context)))
    asked = SimpleNamespace(
        session=SimpleNamespace(free=lambda: closed.append("model")), export=Path("export"),
        server=SimpleNamespace(close=lambda: closed.append("server")), rendered=[[1] * 5, [1] * 7],
        step=SimpleNamespace(validation=SimpleNamespace(max_new_tokens=10)), token_rows=[],
    )  # fmt: skip
    gate.Measurer.serve(asked, "q8_0")
    asked.token_rows = [[1] * 30]
    gate.Measurer.serve(asked, "q8_0")
    assert [context for _, context in served] == [25, 38] and closed == ["model", "server", "model"]


def test_the_loss_in_an_engine_is_that_of_its_tables():
    row = inference.TokenRow([1], [2, 3])
    engine = SimpleNamespace(likeliest=lambda rows, *, num: [[{2: -0.5}, {3: -1.0}] for _ in rows])
    asked = SimpleNamespace(engine=engine, token_rows=[row, row])
    assert gate.Measurer.engine_losses(asked, "fp8") == {"losses": {"fp8": [(1.5, 2)] * 2}}
    server = SimpleNamespace(likeliest=lambda ids, *, num: {len(ids) + 1: -0.25, 0: -9.0})
    asked = SimpleNamespace(server=server, token_rows=[row])
    assert gate.Measurer.gguf_losses(asked, "q8_0") == {"losses": {"q8_0": [(0.5, 2)]}}


def test_the_loss_of_a_file_is_compared_token_by_token():
    step = CheckExportStep.model_validate({"validation": LIMITS | {"answer_match": "none"}})
    words = (step.validation, step.export)
    check = gate.loss_check([(10.0, 10), (30.0, 20)] * 4, [(12.0, 10), (34.0, 20)] * 4, "q8_0", *words)
    assert check.value == pytest.approx(0.2)
    assert gate.loss_check(None, [(12.0, 10)], "q8_0", *words).status == "not run"


def test_an_engine_takes_the_place_of_the_model(monkeypatch):
    freed = []
    monkeypatch.setattr(gate.vllm, "Engine", lambda folder, *, num_likeliest: (folder.name, num_likeliest, freed[:]))
    asked = SimpleNamespace(session=SimpleNamespace(free=lambda: freed.append("model")), export=Path("export"))
    gate.Measurer.load_engine(asked, "fp8")
    assert asked.engine == ("fp8", gate.NUM_LIKELIEST, ["model"])


def test_a_format_whose_engine_is_not_installed_ends_the_gate_before_it_measures(judge, untaught, monkeypatch):
    def refuse(export):
        raise ValueError(f"{export.formats} needs an engine")

    monkeypatch.setattr(gate.formats, "check_installed", refuse)
    with pytest.raises(ValueError, match=r"^\['f16'\] needs an engine"):
        judge(untaught, untaught, "f16")


def test_model_files_and_outputs_are_required(capsys):
    with pytest.raises(SystemExit):
        gate.build_parser().parse_args([])
    assert "--model, --export, --answers, --verdict" in capsys.readouterr().err


def test_either_preferences_or_sft_rows(tmp_path, capsys):
    outputs = ("verdict", "report", "summary", "answers", "metrics", "passed")
    flags = ("step", "storage-root", "export", "model", *outputs)
    with pytest.raises(SystemExit):
        gate.main([part for name in flags for part in (f"--{name}", str(tmp_path / name))])
    assert "pass --preference-eval, --sft-eval or both" in capsys.readouterr().err


def test_a_missing_measurement_does_not_pass():
    step = CheckExportStep.model_validate({"validation": LIMITS})
    answered = gate.content.Content(references=[], model=None)
    judged: list[Check] = gate.judge(gate.Numbers(), "q8_0", answered, step)
    assert {check.status for check in judged} == {"not run"}
