"""Tests the launch step against a cluster that really starts processes: `tests.trainer_server`."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from posttrain import storage
from posttrain.config import RUN_ID_ENV, SftStep, Workers
from posttrain.nodes import follow, kubernetes, launch
from posttrain.nodes.train_job import FINGERPRINT, RUN, name_of
from posttrain.rows.formats import write_jsonl
from posttrain.step import records
from posttrain.step.run import Unfinished
from posttrain.step.running import Running
from posttrain.train import order as orders
from posttrain.train.checkpoints import Diverged
from tests.trainer_server import POD, WORKFLOW, Trainer, serving

WORKERS = {
    "num_nodes": 2,
    "image": f"registry.example.org/posttrain-train@sha256:{'0' * 64}",
    "runtime": "posttrain",
    "placement": {"cpu": "2", "memory": "4Gi"},
    "deadline_minutes": 5,
    "queue_minutes": 5,
}
ROW = {"id": "a", "prompt": [{"role": "user", "content": "x"}], "completion": [{"role": "assistant", "content": "y"}]}


class Step:
    """A train_sft on two nodes in a cluster, with its files in a folder."""

    def __init__(self, folder: Path, trainer: Trainer):
        self.folder, self.trainer, self.root = folder, trainer, str(folder / "root")
        (folder / "base").mkdir()
        (folder / "base" / "config.json").write_text("{}")
        for name in ("train", "eval"):
            write_jsonl(folder / f"{name}.jsonl", [ROW])

    def argv(self, **workers) -> list[str]:
        settings = {"training": {"num_processes": 4}, "sft": {"gradient_accumulation": 4}}
        flags = {"step": "train_sft", "storage-root": self.root, "base": self.folder / "base"}
        flags |= {"config": json.dumps(settings | {"workers": WORKERS | workers})}
        flags |= {name: self.folder / f"{name}.jsonl" for name in ("train", "eval")}
        flags |= {name: self.folder / "out" / name for name in ("adapter", "metrics", "curve", "logs")}
        return [str(part) for name, value in flags.items() for part in (f"--{name}", value)]

    def plan(self, *ends: str) -> None:
        """Says how the workers of each attempt end."""
        self.trainer.environment |= {"PLAN": ",".join(ends), "FOLDER": str(self.folder)}

    def run(self, **workers) -> None:
        launch.main(self.argv(**workers))

    def start(self) -> subprocess.Popen:
        command = [sys.executable, "-m", "tests.launch_step", str(self.trainer.folder), *self.argv()]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def record(self) -> records.StepRecord:
        return records.read_records(self.root, "run-1")[-1]

    def order(self, attempt: int) -> orders.Order:
        uri = Path(orders.folder(self.root, "run-1", "train_sft", attempt), orders.ORDER)
        return orders.Order.model_validate_json(uri.read_bytes())

    def pids(self, attempt: int) -> list[int]:
        files = [self.folder / f"pid-{attempt}-{node}" for node in range(2)]
        return [int(file.read_text()) for file in files if file.is_file() and file.read_text()]


def wait_for(condition: Callable[[], object], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def hurry(monkeypatch, **seconds: float) -> None:
    """Gives an attempt less time than minutes."""
    monkeypatch.setattr(launch, "follow", lambda *args, **limits: follow.follow(*args, **limits | seconds))


@pytest.fixture
def step(tmp_path, monkeypatch) -> Iterator[Step]:
    with serving(tmp_path / "credentials", worker="tests.trainer_worker") as trainer:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "localhost")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(trainer.port))
        monkeypatch.setenv("KFP_POD_NAME", POD)
        monkeypatch.setenv(RUN_ID_ENV, "run-1")
        monkeypatch.setattr(kubernetes, "SERVICE_ACCOUNT", trainer.folder)
        monkeypatch.setattr(follow, "LOOK_SECONDS", 1)
        monkeypatch.setattr(follow, "END_SECONDS", 0.02)
        monkeypatch.setattr(kubernetes, "ASK_SECONDS", 0.02)
        yield Step(tmp_path, trainer)


def test_the_outputs_of_the_workers_are_those_of_the_step(step):
    step.plan("finished")
    step.run()
    train = records.read_records(step.root, "run-1")[-1]
    out = {path.name: path for path in (step.folder / "out").iterdir()}
    assert out.keys() == {"adapter", "metrics", "curve", "logs"}
    assert (out["adapter"] / "adapter_model.safetensors").read_text().endswith(train.inputs["train"])
    assert train.status == "succeeded" and train.code.module == "posttrain.sft"
    job = step.trainer.jobs[name_of("run-1", "train_sft", 1)].job
    expected = {"train_loss": 0.5, "num_nodes": 2, "num_ranks": 4, "train_job": job["metadata"]["uid"]}
    assert train.measured == expected
    assert job["metadata"]["ownerReferences"][0]["name"] == WORKFLOW
    assert train.config["image"] == WORKERS["image"] and train.config["num_processes"] == 4
    order = step.order(1)
    assert (order.num_nodes, order.num_processes_per_node, order.limit_seconds) == (2, 2, 180 * 60)
    assert SftStep.model_validate(order.config).training.num_processes == 4


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        ("unfinished", Unfinished),
        ("diverged", Diverged),
        ("out_of_memory", MemoryError),
        ("bad_input", ValueError),
        ("failed", RuntimeError),
    ],
)
def test_the_step_ends_as_the_rank_that_ended_the_attempt(step, outcome, error, caplog):
    step.plan(outcome)
    with pytest.raises(error) as caught:
        step.run()
    assert str(caught.value) == f"{outcome} at step 4/9"
    said = [
        one.getMessage() for one in caplog.records if (one.name, one.levelname) == ("posttrain.nodes.launch", "ERROR")
    ]
    assert said == (["unfinished at step 4/9"] if outcome == "unfinished" else [])  # the others are raised as errors
    assert step.record().status == ("unfinished" if outcome == "unfinished" else "failed")


@pytest.mark.long
def test_the_next_attempt_is_another_train_job_and_the_pods_of_the_last_are_gone(step):
    step.plan("unfinished", "killed", "finished")
    for error in (Unfinished, RuntimeError):
        with pytest.raises(error):
            step.run()
    step.run()
    assert step.trainer.created() == [name_of("run-1", "train_sft", number) for number in (1, 2, 3)]
    assert step.record().status == "succeeded" and step.trainer.num_alive() == 0


def test_a_lost_worker_is_named(step):
    step.plan("killed")
    with pytest.raises(RuntimeError, match=r"TrainJob train-sft-\w{12}: jobset failed.*; a worker died"):
        step.run()


def test_the_progress_of_the_workers_is_that_of_the_step(step, caplog):
    caplog.set_level("INFO")
    step.plan("finished")
    step.run()
    assert step.record().progress.words == "step 1/9"


def test_a_finished_result_starts_no_second_train_job(step, monkeypatch):
    step.plan("finished")
    step.run()
    monkeypatch.setenv(RUN_ID_ENV, "run-2")
    step.run()
    assert len(step.trainer.created()) == 1
    assert records.read_records(step.root, "run-2")[-1].status == "reused"


def test_a_queue_that_does_not_admit_it_in_time_ends_the_attempt(step, monkeypatch):
    step.trainer.queue_seconds = 1000
    step.plan("finished")
    hurry(monkeypatch, start_seconds=0.3)
    with pytest.raises(TimeoutError, match=r"its processes had not met after 0.005 min \(queue_minutes\)$"):
        step.run()
    assert not [running for running in step.trainer.jobs.values() if running.nodes]
    assert [call.split()[0] for call in step.trainer.calls] == ["create", "delete"]


def test_a_train_job_that_is_late_is_ended_by_trainer(step, monkeypatch):
    step.plan("hangs")
    step.trainer.grace_seconds = 0.2
    build = launch.train_job

    def with_short_deadline(*args, **options):
        job = build(*args, **options)
        assert job["spec"]["activeDeadlineSeconds"] == 600
        job["spec"]["activeDeadlineSeconds"] = 0
        return job

    monkeypatch.setattr(launch, "train_job", with_short_deadline)
    with pytest.raises(TimeoutError, match="exceeded its deadline; its workers were ended before they could save"):
        step.run()


@pytest.mark.long
def test_a_faulty_api_is_asked_again_while_the_train_job_goes_on(step, caplog):
    step.plan("waits")
    step.trainer.faults = {"get": [500, 503], "watch": [500]}
    (step.folder / "finish").write_text("")
    step.run()
    assert step.record().status == "succeeded"
    assert "asked again: " in caplog.text


def test_a_pod_without_the_role_is_told_which_it_needs(step):
    step.trainer.allowed = {"get"}
    with pytest.raises(ValueError, match=r"answered 403: .*configs/kubernetes/trainer.yaml"):
        step.run()


def test_a_run_that_has_diverged_starts_no_train_job(step, monkeypatch):
    def diverged(_) -> None:
        raise Diverged("diverged at step 3/9")

    monkeypatch.setattr(launch.Checkpoints, "refuse_if_diverged", diverged)
    with pytest.raises(Diverged):
        step.run()
    assert step.trainer.created() == []


def test_outside_of_a_cluster_the_step_says_so(step, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(ValueError, match="trains on 2 nodes, which only a cluster has: .*nodes to 1"):
        step.run()


def test_changed_outputs_are_refused(step, monkeypatch):
    step.plan("finished")
    collect = launch.collect

    def change(order, ending, outputs) -> None:
        Path(order.uri(orders.OUTPUTS, "metrics")).write_text("0.1")
        collect(order, ending, outputs)

    monkeypatch.setattr(launch, "collect", change)
    with pytest.raises(OSError, match="metrics: has SHA-256"):
        step.run()


@pytest.mark.long
def test_a_launch_step_that_is_killed_is_followed_by_one_that_adopts_its_train_job(step):
    step.plan("waits")
    first = step.start()
    wait_for(lambda: len(step.pids(1)) == 2)
    first.kill()
    first.communicate()
    assert step.record().status == "running"
    (step.folder / "finish").write_text("")
    step.run()
    assert len(step.trainer.created()) == 1
    assert step.record().status == "succeeded"


def test_a_launch_step_that_is_killed_before_it_collects_is_followed_by_one_that_does(step):
    step.plan("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "collect", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            step.run()
    step.run()
    assert len(step.trainer.created()) == 1 and step.record().status == "succeeded"


@pytest.mark.long
def test_at_sigterm_the_train_job_is_deleted_once_and_its_workers_save(step):
    step.plan("waits", "finished")
    process = step.start()
    wait_for(lambda: len(step.pids(1)) == 2)
    began = time.monotonic()
    process.terminate()
    process.communicate()
    assert time.monotonic() - began < 10
    assert process.returncode == 75
    assert [call for call in step.trainer.calls if call.startswith("delete")] == [
        f"delete {name_of('run-1', 'train_sft', 1)}"
    ]
    wait_for(lambda: step.trainer.num_alive() == 0)
    assert orders.read_ending(step.order(1)).reason == "stopped at step 4/9: SIGTERM"
    step.run()  # Argo tries again, or somebody starts the run again
    assert step.record().status == "succeeded" and len(step.trainer.created()) == 2


@pytest.mark.long
def test_workers_that_nobody_follows_any_more_leave_when_their_lease_lapses(step, monkeypatch):
    step.plan("waits")
    monkeypatch.setattr(orders, "LAPSE_SECONDS", 1.0)

    def lost(*_, **options) -> None:
        raise KeyboardInterrupt("the pod of the launch step is lost")

    monkeypatch.setattr(launch, "follow", lost)
    with pytest.raises(KeyboardInterrupt):
        step.run()
    wait_for(lambda: step.pids(1) and orders.read_ending(step.order(1)))
    assert orders.read_ending(step.order(1)).reason == "the lease has lapsed"
    wait_for(lambda: step.trainer.num_alive() == 0)


@pytest.mark.long
def test_the_next_attempt_waits_until_the_pods_of_a_failed_train_job_have_saved(step):
    step.plan("saves slowly", "finished")
    with pytest.raises(Unfinished):
        step.run()
    wait_for(lambda: step.trainer.jobs[name_of("run-1", "train_sft", 1)].ended)
    assert step.trainer.num_alive() == 1
    num_listed = step.trainer.num_listed

    def save() -> int:
        wait_for(lambda: step.trainer.num_listed > num_listed + 1)
        (step.folder / "saved").write_text("")
        return len(step.trainer.created())

    with ThreadPoolExecutor(1) as pool:
        saved = pool.submit(save)
        step.run()
    assert saved.result() == 1
    assert len(step.trainer.created()) == 2 and not step.trainer.deleted()


@pytest.mark.long
def test_pods_that_their_lost_node_never_reports_as_ended_do_not_keep_the_next_attempt_back(step, monkeypatch, caplog):
    monkeypatch.setattr(launch, "STOP_SECONDS", 0.1)
    step.plan("saves slowly", "finished")
    with pytest.raises(Unfinished):
        step.run()
    wait_for(lambda: step.trainer.jobs[name_of("run-1", "train_sft", 1)].ended)
    step.run()
    assert step.record().status == "succeeded" and not step.trainer.deleted()
    assert "should have ended, but their nodes do not say so: train-sft-" in caplog.text


@pytest.mark.long
def test_pods_that_nobody_ends_are_deleted_with_their_train_job_before_the_next_attempt(step, monkeypatch):
    monkeypatch.setattr(launch, "STOP_SECONDS", 0.5)
    step.plan("unfinished in part", "finished")
    step.trainer.grace_seconds = 0.1
    with pytest.raises(Unfinished):
        step.run()
    step.run()
    first, second = (name_of("run-1", "train_sft", number) for number in (1, 2))
    assert [call for call in step.trainer.calls if not call.startswith("get")] == [
        f"create {first}",
        f"delete {first}",
        f"create {second}",
    ]


def test_a_train_job_of_its_name_that_another_run_owns_is_neither_adopted_nor_deleted(step, monkeypatch):
    name = name_of("run-1", "train_sft", 1)
    build = launch.train_job

    def of_another_run(*args, **options):
        job = build(*args, **options)
        job["metadata"]["annotations"][RUN] = "another"
        return job

    step.plan("waits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "train_job", of_another_run)
        patch.setattr(launch, "follow", lambda *_, **__: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            step.run()
    for _ in range(2):
        with pytest.raises(ValueError, match=f"TrainJob {name}: trains something else than this run"):
            step.run()
    step.trainer.jobs[name].ended = {"reason": "JobsFailed", "message": ""}
    step.trainer.jobs[name].says()
    with pytest.raises(ValueError, match=f"TrainJob {name}: trains something else than this run"):
        step.run()
    assert step.trainer.created() == [name] and not step.trainer.deleted()


@pytest.mark.long
def test_a_job_set_that_vanishes_with_its_pods_ends_the_attempt_when_its_time_is_up(step, monkeypatch):
    step.plan("waits", "finished")
    hurry(monkeypatch, limit_seconds=2)
    follow_ = follow.follow

    def vanishing(*args, **limits):
        wait_for(lambda: (step.folder / "pid-1-0").exists() and storage.exists(step.order(1).uri(orders.PROGRESS)))
        step.trainer.jobs[name_of("run-1", "train_sft", 1)].vanish()
        return follow_(*args, **limits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow, "follow", vanishing)
        with pytest.raises(TimeoutError, match="was not done after 0.0333 min, queue included"):
            step.run()
    step.run()
    assert step.record().status == "succeeded" and len(step.trainer.created()) == 2


def test_a_train_job_that_somebody_deletes_ends_the_attempt_and_its_pods_save(step):
    step.plan("waits")

    def delete() -> None:
        wait_for(lambda: len(step.pids(1)) == 2 and storage.exists(step.order(1).uri(orders.PROGRESS)))
        step.trainer.delete(name_of("run-1", "train_sft", 1))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(delete)
        with pytest.raises(Unfinished, match="stopped at step 4/9: SIGTERM"):
            step.run()


@pytest.mark.long
@pytest.mark.parametrize("verb", ["get", "create", "list"])
def test_an_api_that_is_away_for_minutes_ends_no_attempt(step, verb, caplog):
    """As often as it is asked in five minutes."""
    step.plan("unfinished", "finished")
    with pytest.raises(Unfinished):
        step.run()
    step.trainer.faults = {verb: [503] * 30}
    step.run()
    assert step.record().status == "succeeded" and len(step.trainer.created()) == 2
    assert not step.trainer.faults[verb]
    assert "asked again: " in caplog.text


def test_an_api_that_stays_away_ends_the_attempt(step, monkeypatch):
    monkeypatch.setattr(kubernetes, "AWAY_SECONDS", 0.1)
    step.trainer.faults = {"get": [503] * 1000}
    with pytest.raises(OSError, match="answered 503"):
        step.run()


@pytest.mark.long
def test_a_pod_that_may_not_delete_leaves_its_workers_to_their_lease(step, monkeypatch):
    step.plan("waits")
    step.trainer.allowed -= {"delete"}
    monkeypatch.setattr(orders, "LAPSE_SECONDS", 1.0)
    hurry(monkeypatch, limit_seconds=1)
    with pytest.raises(TimeoutError, match="was not done after"):
        step.run()
    wait_for(lambda: step.trainer.num_alive() == 0)
    assert orders.read_ending(step.order(1)).reason == "the lease has lapsed"


@pytest.mark.long
def test_an_image_that_cannot_be_pulled_is_named_and_waited_for_as_long_as_for_nodes(step, monkeypatch, caplog):
    step.trainer.is_pullable = False
    step.plan("finished")
    hurry(monkeypatch, start_seconds=2)
    reason = r"pod train-sft-\w{12}-node-0-0 waits: ImagePullBackOff: Back-off pulling image"
    with pytest.raises(TimeoutError, match=rf"had not met after 0.0333 min \(queue_minutes\); {reason}"):
        step.run()
    assert caplog.text.count("WARNING") == 1 and re.search(reason, caplog.text)
    assert step.trainer.deleted() == [name_of("run-1", "train_sft", 1)]


@pytest.mark.long
def test_a_worker_that_leaves_alone_ends_the_attempt_and_the_next_one_goes_on(step):
    step.plan("leaves", "finished")
    with pytest.raises(RuntimeError, match="a worker died without an error"):
        step.run()
    step.run()
    assert step.record().status == "succeeded" and len(step.trainer.created()) == 2


class Jobs(dict):
    """TrainJobs by name: answers a look at one as the API does. No pod runs."""

    def pods_of(self, name: str) -> list[dict]:
        return []


NONE = Jobs()


@pytest.fixture
def earlier(tmp_path, monkeypatch) -> Callable[..., Running]:
    """A function that writes the orders of earlier attempts, and gives the step that comes after them."""
    monkeypatch.setenv(RUN_ID_ENV, "run-1")

    def write(*numbers: int, fingerprint: str = "f") -> Running:
        for number in numbers:
            orders.write_order(orders.Order(
                run_id="run-1", step="train_sft", attempt=number, fingerprint=fingerprint, storage_root=str(tmp_path),
                inputs={}, config={}, num_nodes=2, num_processes_per_node=1, limit_seconds=60, lapse_seconds=600,
            ))  # fmt: skip
        return Running("train_sft", str(tmp_path), "f")

    return write


def test_the_next_attempt_has_the_next_number(earlier):
    running = earlier()
    assert launch._prepare_next(running, NONE) == 1
    earlier(10, 2, 1)
    (Path(running.storage_root) / "runs/run-1/nodes/train_sft/inputs/model").mkdir(parents=True)
    (Path(running.storage_root) / "runs/run-1/nodes/train_sft/inputs/model/order.json").write_text("{}")
    (Path(running.storage_root) / "runs/run-1/nodes/train_sft/10/lease.json").write_text("{}")
    assert [order.attempt for order in launch._attempts(running)] == [1, 2, 10]
    assert launch._prepare_next(running, NONE) == 11


def live(**metadata: str) -> dict:
    return {"metadata": metadata, "status": {}}


def test_an_attempt_is_gone_on_with_while_its_train_job_lives(earlier):
    running = earlier(1, 2)
    name = name_of("run-1", "train_sft", 2)
    ended = {"metadata": {}, "status": {"conditions": [{"type": "Failed", "status": "True"}]}}
    assert launch._live_or_finished(running, {name: live()}).attempt == 2
    assert launch._live_or_finished(running, {name: live(deletionTimestamp="now")}) is None
    assert launch._live_or_finished(running, {name: ended}) is launch._live_or_finished(running, NONE) is None
    assert launch._live_or_finished(earlier(3, fingerprint="e"), NONE) is None


@pytest.mark.parametrize(("outcome", "is_taken"), [("finished", True), ("failed", False), ("unfinished", False)])
def test_an_attempt_that_has_ended_is_taken_over_only_if_it_is_finished(outcome, is_taken, earlier):
    running = earlier(1)
    (order,) = launch._attempts(running)
    orders.write_ending(order, orders.Ending(outcome=outcome, num_ranks=2, num_nodes=2))
    name = name_of("run-1", "train_sft", 1)
    assert launch._live_or_finished(running, {name: live()}) == (order if is_taken else None)


@dataclass
class Cluster:
    """Has a TrainJob of every name, as somebody created it, or has had one until just now."""

    there: dict | None
    owners: list[str] = field(default_factory=list)

    def create(self, job: dict) -> None:
        assert job["metadata"].get("ownerReferences") == ([{"uid": "w"}] if self.owners else None)

    def get(self, name: str) -> dict | None:
        return self.there

    def owner_of(self, pod: str) -> dict:
        self.owners.append(pod)
        return {"uid": "w"}


@pytest.mark.parametrize("pod", [None, "train-sft-1"])
def test_only_a_train_job_of_this_training_is_adopted(pod, earlier, monkeypatch):
    monkeypatch.delenv("KFP_POD_NAME", raising=False)
    if pod:
        monkeypatch.setenv("KFP_POD_NAME", pod)
    (order,) = launch._attempts(earlier(1))
    workers = Workers.model_validate(WORKERS)

    own = launch.train_job(order, orders.write_order(order), workers, owner=None)

    def adopt(**metadata: object) -> str:
        return launch.create_or_adopt(order, workers, Cluster(own | {"metadata": own["metadata"] | metadata}))

    assert adopt(uid="u-1") == "u-1"
    for annotations in (own["metadata"]["annotations"] | {FINGERPRINT: "e"}, {}):
        with pytest.raises(ValueError, match=r"TrainJob train-sft-\w{12}: trains something else than this run"):
            adopt(annotations=annotations)
    cluster = Cluster(None)
    assert launch.create_or_adopt(order, workers, cluster) == ""  # it was there, and is gone
    assert cluster.owners == ([pod] if pod else [])
