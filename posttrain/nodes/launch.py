"""Run a training on several nodes: the step creates, or adopts, a TrainJob of Kubeflow Trainer, and follows it.

the inputs of a training stage -> its outputs, as from a single pod

It takes the flags of the stage, and ends as the stage would: what a rank leaves as an `Ending` is raised here as the
error that ended it. So the next attempt in this container, if that may help, is the next TrainJob, which resumes from
the newest checkpoint. If this pod is lost, the TrainJob goes on, and whoever comes next adopts it.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict

from posttrain import storage
from posttrain.config import HALVINGS_ENV, DpoStep, SftStep, Workers, parse_step
from posttrain.config.line import step_of
from posttrain.nodes import inputs
from posttrain.nodes.follow import deleting_when_stopped, follow, keeping_lease, signals_blocked, wait_until_ended
from posttrain.nodes.kubernetes import Kubernetes, Object, has_ended, until_answered
from posttrain.nodes.train_job import is_of, name_of, train_job
from posttrain.step import frame
from posttrain.step.attempts import POD_ENV
from posttrain.step.digests import digest
from posttrain.step.run import Unfinished, is_fresh, run_id
from posttrain.step.running import Running
from posttrain.storage import layout
from posttrain.train import order as orders
from posttrain.train.checkpoints import Checkpoints, Diverged
from posttrain.train.order import Ending, Order, read_ending
from posttrain.train.stage import OUTPUTS

STOP_SECONDS = 330.0  # in which the pods of an ended attempt must be gone: their runtime gives them 300 to save
ERRORS = {
    "unfinished": Unfinished,
    "diverged": Diverged,
    "out_of_memory": MemoryError,
    "bad_input": ValueError,
    "failed": RuntimeError,
}

logger = logging.getLogger(__name__)


class OnNodes(BaseModel):
    """Settings that decide the result: those that do so in a single pod, and the image, whose libraries train."""

    model_config = ConfigDict(extra="allow", frozen=True)

    image: str


def launch(
    running: Running, step: SftStep | DpoStep, *, api: Kubernetes, paths: dict[str, str], executor_input: str
) -> tuple[Order, Ending, str]:
    """Trains on several nodes, and returns the order of the newest attempt, how it ended, and its TrainJob's UID.

    Raises:
        Unfinished, Diverged, MemoryError, ValueError, RuntimeError: as in the rank that ended the attempt.
        TimeoutError: the attempt was not done in time, its wait in a queue included.
    """
    Checkpoints.of(running, limit=1).refuse_if_diverged()
    order = _live_or_finished(running, api)
    if order is None:
        number = _prepare_next(running, api)
        kept = inputs.addresses(running, paths, run_id=run_id(), executor_input=executor_input)
        order = order_of(running, step, number=number, kept=kept)
    name, workers = name_of(order.run_id, order.step, order.attempt), step.workers
    if ending := read_ending(order):  # an earlier launch step was lost before it could bring the outputs
        job = until_answered(partial(api.get, name))
        return order, ending, job["metadata"]["uid"] if job else ""
    with keeping_lease(order), deleting_when_stopped(api, name):
        uid = create_or_adopt(order, workers, api)
        start_seconds, train_seconds = 60.0 * workers.queue_minutes, 60.0 * workers.deadline_minutes
        limits = {"start_seconds": start_seconds, "limit_seconds": start_seconds + train_seconds}
        return order, follow(api, name, order, **limits), uid


def order_of(running: Running, step: SftStep | DpoStep, *, number: int, kept: dict[str, orders.Kept]) -> Order:
    """Returns the order of an attempt."""
    workers = step.workers
    return Order(
        run_id=run_id(),
        step=running.step,
        attempt=number,
        fingerprint=running.fingerprint,
        storage_root=running.storage_root,
        inputs=kept,
        config=step.model_dump(mode="json", exclude={"workers"}),
        num_nodes=workers.num_nodes,
        num_processes_per_node=step.training.num_processes // workers.num_nodes,
        limit_seconds=step.training.timeout_minutes * 60,
        lapse_seconds=orders.LAPSE_SECONDS,
        num_halvings=int(os.environ.get(HALVINGS_ENV, "0")),
        is_fresh=is_fresh(),
    )


def create_or_adopt(order: Order, workers: Workers, api: Kubernetes) -> str:
    """Creates the attempt's TrainJob, unless an earlier launch step has, and returns its UID.

    Raises:
        ValueError: there is one of this name that trains something else.
    """
    name = name_of(order.run_id, order.step, order.attempt)
    there = until_answered(partial(api.get, name))
    if there is None and (created := _create(order, workers, api)):
        logger.info("TrainJob %s created: %d nodes, %d processes", name, order.num_nodes, order.num_ranks)
        return created["metadata"]["uid"]
    there = there or until_answered(partial(api.get, name))  # another pod of this step was faster
    _refuse_foreign(there, order)
    logger.info("TrainJob %s adopted: an earlier pod of this step has created it", name)
    return there["metadata"]["uid"] if there else ""


def _create(order: Order, workers: Workers, api: Kubernetes) -> Object | None:
    """Writes an order and creates its TrainJob; returns None if there is one of this name."""
    pod = os.environ.get(POD_ENV)
    owner = until_answered(partial(api.owner_of, pod)) if pod else None
    job = train_job(order, orders.write_order(order), workers, owner=owner)

    def create() -> Object | None:
        with signals_blocked():
            return api.create(job)

    return until_answered(create)


def _refuse_foreign(job: Object | None, order: Order) -> None:
    """Refuses to adopt, or to end, what another run has created.

    Raises:
        ValueError: the TrainJob is not that of the order.
    """
    if job and not is_of(job, order):
        name = job["metadata"]["name"]
        raise ValueError(f"TrainJob {name}: trains something else than this run; find out who has created it")


def _attempts(running: Running) -> list[Order]:
    """Returns the orders of earlier attempts in this run, the newest last."""
    folder = layout.runs(running.storage_root, run_id(), "nodes", running.step)
    return orders.read_orders(folder)


def _live_or_finished(running: Running, api: Kubernetes) -> Order | None:
    """Returns the order of this run's newest attempt, if a TrainJob still works on it or it is finished."""
    newest = next(reversed(_attempts(running)), None)
    if newest is None or newest.fingerprint != running.fingerprint:
        return None
    if ending := read_ending(newest):
        return newest if ending.outcome == "finished" else None
    job = until_answered(partial(api.get, name_of(newest.run_id, newest.step, newest.attempt)))
    is_live = not has_ended(job) and not job["metadata"].get("deletionTimestamp")
    return newest if is_live else None


def _prepare_next(running: Running, api: Kubernetes) -> int:
    """Waits until the attempt before has no pods left, and returns the number of the next one."""
    earlier = _attempts(running)
    if not earlier:
        return 1
    newest = earlier[-1]
    name = name_of(newest.run_id, newest.step, newest.attempt)
    _refuse_foreign(until_answered(partial(api.get, name)), newest)  # it may have to be deleted
    wait_until_ended(api, name, patience_seconds=STOP_SECONDS)
    return newest.attempt + 1


def collect(order: Order, ending: Ending, outputs: dict[str, str]) -> None:
    """Brings what the first rank has left to the paths of the outputs.

    Raises:
        OSError: something is not there, or not what the rank has written.
    """
    for name, path in outputs.items():
        uri = order.uri(orders.OUTPUTS, name)
        (storage.download_file if storage.exists(uri) else storage.download_folder)(uri, path)
        if (actual := digest(path)) != ending.outputs.get(name):
            raise OSError(f"{uri}: has SHA-256 {actual}, not {ending.outputs.get(name)}: it was changed or is damaged")


def raise_as_single(ending: Ending) -> NoReturn:
    """Raises the error with which a single pod would have ended."""
    if ending.outcome == "unfinished":
        logger.error("%s", ending.reason)
    raise ERRORS[ending.outcome](ending.reason)


def _work(
    running: Running, *, step: SftStep | DpoStep, paths: dict[str, str], outputs: dict[str, str], executor_input: str
) -> dict[str, Any]:
    """Is the work of the step: trains, brings the outputs and returns what was measured, and where."""
    api = Kubernetes.of_this_pod()
    if api is None:
        raise ValueError(
            f"{running.step} trains on {step.workers.num_nodes} nodes, which only a cluster has: run the graph there, "
            f"or set placement.steps.{running.step}.nodes to 1 and compile it again"
        )
    order, ending, uid = launch(running, step, api=api, paths=paths, executor_input=executor_input)
    if ending.outcome != "finished":
        raise_as_single(ending)
    collect(order, ending, outputs)
    return ending.measured | {"num_nodes": ending.num_nodes, "num_ranks": ending.num_ranks, "train_job": uid}


def build_parser(step: str) -> argparse.ArgumentParser:
    """Returns the parser of the stage that is to be launched."""
    return importlib.import_module(step_of(step).module).build_parser()


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    chosen = argparse.ArgumentParser(prog="python -m posttrain.nodes.launch", description=__doc__, add_help=False)
    chosen.add_argument("--step", required=True)
    args = build_parser(chosen.parse_known_args(argv)[0].step).parse_args(argv)
    step = parse_step(step_of(args.step).section, args.config, args.overrides)
    if getattr(step, "workers", None) is None:
        raise ValueError(f"--step {args.step}: has one node only; start {step_of(args.step).module} instead")
    first = "base" if hasattr(args, "base") else "model"
    paths = {name: getattr(args, name) for name in (first, "train", "eval")}
    outputs = {name: getattr(args, name) for name in OUTPUTS}
    decisive = OnNodes(image=step.workers.image, **step.decisive.model_dump(mode="json"))
    work = partial(_work, step=step, paths=paths, outputs=outputs, executor_input=args.executor_input)
    frame.run_step(args, inputs=paths, outputs=outputs, config=decisive, work=work)


if __name__ == "__main__":
    main()
