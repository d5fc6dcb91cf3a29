"""The client against a Kubeflow Pipelines API on loopback (tests/kubeflow_server.py)."""

import logging
import time
from pathlib import Path

import pytest
from kfp import compiler, dsl

from pipelines.package import Package
from runner.kubeflow import Client, follow, steps_of_tasks, submit, terminate
from runner.local import ROOT
from tests.kubeflow_server import TASK_SECONDS, Behaviour, Kubeflow, Scene, serve

STEPS = {"fetch-model": "fetch_model", "train-sft": "train_sft", "check-sft": "check_sft", "reject-2": "reject_sft"}
PARAMETERS = {"sft_dataset": "gs://b/sft.jsonl", "model_name": "7", "overrides": {"sft": {"epochs": 2, "seed": 1}}}


@dsl.container_component
def fetch_model():
    return dsl.ContainerSpec(image="example.org/cpu@sha256:" + "0" * 64, command=["python", "-m", "posttrain.model"])


@pytest.fixture(scope="session")
def package(tmp_path_factory) -> Path:
    """A graph of one step: kfp takes half a second to read the real one."""
    path = tmp_path_factory.mktemp("package") / "graph.yaml"
    compiler.Compiler().compile(dsl.pipeline(name="one-step")(lambda: fetch_model() and None), str(path))
    return path


class Told:
    """A listener that keeps what it is told."""

    def __init__(self, over_at=None):
        self.events, self.states, self.over_at = [], [], over_at

    def started(self, step):
        self.events.append(f"{step} started")

    def ended(self, step, succeeded, seconds):
        self.events.append(f"{step} {'done' if succeeded else 'failed'} {seconds:.0f} s")

    def looked(self, state):
        self.states.append(state)
        return state == self.over_at


class Cluster:
    """The server, and a run that is sent to it and followed."""

    def __init__(self, kubeflow: Kubeflow, package: Path):
        self.kubeflow, self.package = kubeflow, package

    def submit(self, client: Client | None = None, name: str = "demo 1") -> str:
        client = client or Client(self.kubeflow.url)
        return submit(client, self.package, experiment="post-training", name=name, parameters=PARAMETERS)

    def follow(self, *scenes: Scene) -> tuple[str, list[str]]:
        """The state in which the run ended, and what was told."""
        self.kubeflow.scenes = list(scenes)
        client, told = Client(self.kubeflow.url), Told()
        return follow(client, self.submit(client), STEPS, told), told.events


@pytest.fixture
def kubeflow(monkeypatch):
    monkeypatch.setattr("runner.kubeflow.POLL_SECONDS", 0.01)
    monkeypatch.setattr("runner.kubeflow.MAX_WAIT_SECONDS", 0.01)
    monkeypatch.delenv("KF_PIPELINES_SA_TOKEN_PATH", raising=False)
    with serve() as server:
        yield server


@pytest.fixture
def there(kubeflow, package) -> Cluster:
    return Cluster(kubeflow, package)


def test_the_package_and_its_parameters_arrive_as_they_are(kubeflow, capsys):
    client = Client(kubeflow.url)
    package = ROOT / "post_training.yaml"
    run_id = submit(client, package, experiment="post-training", name="demo 1", parameters=PARAMETERS)
    run = kubeflow.runs[run_id]
    assert run.display_name == "demo 1"
    assert kubeflow.experiments[run.experiment_id].display_name == "post-training"
    assert run.runtime_config.parameters == PARAMETERS
    assert run.pipeline_spec["pipeline_spec"]["pipelineInfo"]["name"] == "post-training"
    assert "kubernetes" in run.pipeline_spec["platform_spec"]["platforms"]
    assert capsys.readouterr().out == ""


def test_a_second_run_finds_the_experiment(kubeflow, there):
    assert there.submit(name="a") != there.submit(name="b")
    assert len(kubeflow.runs) == 2
    assert len(kubeflow.experiments) == 1


def test_a_namespace_goes_with_the_experiment(kubeflow, there):
    there.submit(Client(kubeflow.url, namespace="team-a"))
    assert [experiment.namespace for experiment in kubeflow.experiments.values()] == ["team-a"]
    assert "get_healthz" not in kubeflow.calls


def test_tasks_of_a_loop_are_left_out_for_all_iterations_share_their_names():
    steps = steps_of_tasks(Package.read(ROOT / "sweep.yaml"))
    assert steps["judge-winner"] == "judge_winner"
    assert not {"trials-of-rung-1", "trials-of-rung-2", "for-loop-4"} & set(steps)


def test_every_step_of_the_graph_has_its_task():
    steps = steps_of_tasks(Package.read(ROOT / "post_training.yaml"))
    assert {key: name for key, name in steps.items() if key != name.replace("_", "-")} == {}
    assert {"merge_dpo", "reject_alignment", "report_run"} <= set(steps.values())
    assert not {name for name in steps if name.startswith(("condition", "exit-handler", "root"))}


def test_a_run_that_takes_several_looks(kubeflow, there):
    state, events = there.follow(
        Scene("PENDING"),
        Scene("RUNNING", {"fetch-model": "RUNNING"}),
        Scene("RUNNING", {"fetch-model": "RUNNING", "train-sft": "PENDING"}),
        Scene("RUNNING", {"fetch-model": "SUCCEEDED", "train-sft": "RUNNING"}),
        Scene("SUCCEEDED", {"fetch-model": "SUCCEEDED", "train-sft": "SUCCEEDED", "reject-2": "SKIPPED"}),
    )
    assert state == "SUCCEEDED"
    assert events == [
        "fetch_model started", f"fetch_model done {TASK_SECONDS} s",
        "train_sft started", f"train_sft done {TASK_SECONDS} s",
    ]  # fmt: skip


def test_steps_between_two_looks_come_in_the_order_in_which_they_started(kubeflow, there):
    _, events = there.follow(Scene("FAILED", {"train-sft": "SUCCEEDED", "check-sft": "FAILED"}))
    assert events == ["train_sft started", "train_sft done 7 s", "check_sft started", "check_sft failed 7 s"]


def test_a_step_whose_driver_fails_has_failed(kubeflow, there):
    """The task itself is then skipped."""
    _, events = there.follow(Scene("FAILED", {"train-sft-driver": "FAILED", "train-sft": "SKIPPED"}))
    assert events == ["train_sft started", "train_sft failed 7 s"]


@pytest.mark.parametrize("state", ["FAILED", "CANCELED", "SKIPPED"])
def test_every_end_is_an_end(kubeflow, state, there):
    assert there.follow(Scene("RUNNING"), Scene(state))[0] == state


def test_a_run_that_is_terminated_is_canceling_before_its_end(kubeflow, there):
    kubeflow.behaviour = Behaviour(num_looks_canceling=3)
    client, told = Client(kubeflow.url), Told()
    run_id = there.submit(client)
    kubeflow.scenes = [Scene("RUNNING", {"train-sft": "RUNNING"}, happens=lambda run_id: terminate(client, run_id))]
    assert follow(client, run_id, STEPS, told) == "FAILED"
    assert told.states == ["RUNNING", "CANCELING", "CANCELING", "CANCELING", "FAILED"]
    assert told.events == ["train_sft started", f"train_sft failed {TASK_SECONDS} s"]


def test_a_run_that_its_listener_knows_to_be_over_is_not_waited_for(kubeflow, there):
    kubeflow.scenes, told = [Scene("RUNNING"), Scene("PENDING")], Told(over_at="PENDING")
    client = Client(kubeflow.url)
    assert follow(client, there.submit(client), STEPS, told) == "PENDING"


@pytest.mark.parametrize(
    ("call", "fault"),
    [(call, 503) for call in ("get_healthz", "list_experiments", "create_experiment", "list_runs", "create_run")]
    + [("get_run", fault) for fault in (503, 502, 429, 500, "drop", "cut")],
)
def test_a_server_that_is_away_or_busy_is_asked_again_and_that_is_told_once(kubeflow, caplog, call, fault, there):
    num = 9 if isinstance(fault, str) else 2  # urllib3 itself asks for the same answer four times
    kubeflow.faults = {call: [fault] * num}
    assert there.follow(Scene("SUCCEEDED"))[0] == "SUCCEEDED"
    assert kubeflow.faults[call] == []
    (entry,) = caplog.records
    assert entry.name == "runner.kubeflow" and "retrying for up to" in entry.message
    assert len(kubeflow.runs) == 1


@pytest.mark.parametrize("fault", ["lose", "cut", 503])
def test_a_run_whose_creation_was_not_answered_is_not_started_twice(kubeflow, fault, there):
    kubeflow.faults = {"create_run": [fault]}
    assert there.submit() in kubeflow.runs
    assert kubeflow.faults == {"create_run": []}
    assert len(kubeflow.runs) == 1


def test_patience_has_an_end(kubeflow, monkeypatch, there):
    monkeypatch.setattr("runner.kubeflow.FOLLOW_PATIENCE_SECONDS", 0.1)
    kubeflow.faults = {"get_run": [503] * 1_000}
    with pytest.raises(ConnectionError, match=f"^{kubeflow.url}: 503 Service Unavailable$"):
        there.follow(Scene("RUNNING"))


def test_nobody_there(monkeypatch, caplog):
    monkeypatch.setattr("runner.kubeflow.SUBMIT_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr("runner.kubeflow.MAX_WAIT_SECONDS", 0.01)
    with serve() as gone:
        pass
    with pytest.raises(ConnectionError, match="Connection refused"):
        Client(gone.url)
    assert len(caplog.records) == 1


def test_a_silent_server_is_given_up(kubeflow, monkeypatch, there):
    monkeypatch.setattr("runner.kubeflow.TIME_LIMITS", (0.05, 0.05))
    monkeypatch.setattr("runner.kubeflow.SUBMIT_PATIENCE_SECONDS", 0.0)
    client = Client(kubeflow.url)
    monkeypatch.setattr(Kubeflow, "list_experiments", lambda *_: time.sleep(1))
    with pytest.raises(ConnectionError, match="timed out"):
        there.submit(client)


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("kubeflow.example.org", ValueError, "is not a URL; give one like https://"),
        ("http://", ConnectionError, "No host"),
        ("https{}", ConnectionError, "SSL"),
    ],
)
def test_an_address_that_cannot_work_is_told_at_once(kubeflow, caplog, url, error, message):
    with pytest.raises(error, match=message):
        Client(url.format(kubeflow.url.removeprefix("http")))
    assert caplog.records == []


@pytest.mark.parametrize("call", ["get_healthz", "list_experiments", "create_run", "get_run"])
@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "401 Unauthorized: there is no user identity header; .* give --token-file FILE$"),
        (403, "403 Forbidden: not authorized to create runs; .* kubeflow-edit to it in the namespace, .*--namespace"),
    ],
)
def test_who_may_not_is_told_what_to_do_and_not_asked_again(kubeflow, caplog, call, status, remedy, there):
    kubeflow.faults = {call: [status, status]}
    with pytest.raises(PermissionError, match=remedy):
        there.follow(Scene("RUNNING"))
    assert kubeflow.faults[call] == [status]
    assert caplog.records == []


def test_what_kubeflow_refuses_is_its_own_word(kubeflow):
    with pytest.raises(ValueError, match="404 Not Found: .*Run r1 not found"):
        follow(Client(kubeflow.url), "r1", STEPS, Told())


@pytest.mark.parametrize(
    "calls", [["get_healthz", "list_experiments", "create_experiment"], ["create_run"], ["get_run"]]
)
def test_a_page_to_sign_in_is_no_answer(kubeflow, calls, there):
    kubeflow.faults = {call: ["page"] for call in calls}
    with pytest.raises(ValueError, match="may be a sign-in page"):
        there.follow(Scene("RUNNING"))


def test_the_token_is_read_at_every_call(kubeflow, tmp_path, monkeypatch, there):
    file = tmp_path / "token"
    file.write_text("first\n")
    kubeflow.token = "first"

    def renew(run_id):
        file.write_text("second")
        kubeflow.token = "second"

    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    assert there.follow(Scene("RUNNING", happens=renew), Scene("SUCCEEDED"))[0] == "SUCCEEDED"
    assert kubeflow.tokens[0] == "Bearer first"
    assert kubeflow.tokens[-1] == "Bearer second"


def test_a_token_that_is_not_accepted_is_not_shown(kubeflow, tmp_path, caplog):
    file = tmp_path / "token"
    file.write_text("s3cret")
    kubeflow.token = "another"
    caplog.set_level(logging.DEBUG)
    with pytest.raises(PermissionError, match=f"write a fresh token into {file}") as caught:
        Client(kubeflow.url, token_file=str(file))
    assert "s3cret" not in str(caught.value) + caplog.text


@pytest.mark.parametrize(
    ("host", "has_token", "is_warned"), [("127.0.0.1", True, False), ("127.1", True, True), ("127.1", False, False)]
)
def test_a_token_that_leaves_this_machine_unencrypted_is_a_warning(
    kubeflow, tmp_path, caplog, host, has_token, is_warned
):
    (tmp_path / "token").write_text("s3cret")
    url = kubeflow.url.replace("127.0.0.1", host)  # 127.1 is the same machine under a name that nobody has listed
    Client(url, token_file=str(tmp_path / "token") if has_token else None)
    warning = f"--endpoint {url}: the token is sent unencrypted, readable on the way: use https://"
    assert [record.getMessage() for record in caplog.records] == [warning] * is_warned


@pytest.mark.parametrize("content", ["", " \n", "two words", "two\nlines", "s3cret\x07", "s3cret\xff"])
def test_a_file_that_holds_no_token(kubeflow, tmp_path, content):
    file = tmp_path / "token"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=f"{file} has no token in it") as caught:
        Client(kubeflow.url, token_file=str(file))
    assert "s3cret" not in str(caught.value)
    assert kubeflow.calls == []
