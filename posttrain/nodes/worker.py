"""Trains as one rank of several on several nodes, as the step that started them has ordered.

order -> its inputs on each node; adapter, metrics, curve, logs and how the attempt ended, in the storage

`python -m torch.distributed.run -m posttrain.nodes.worker ORDER SHA256` starts it in each process of each node. Nodes
share nothing but the storage. The training is that of `posttrain.sft` or `posttrain.dpo` itself;
posttrain/train/order.py says what lies where.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from posttrain import dpo, sft
from posttrain.config import FRESH_ENV, HALVINGS_ENV, RUN_ID_ENV, masking
from posttrain.config.line import step_of
from posttrain.step import results
from posttrain.step.run import Unfinished, configure_logging
from posttrain.step.running import Running
from posttrain.train import backend, ranks, stage
from posttrain.train.checkpoints import Checkpoints, Diverged
from posttrain.train.contact import Contact
from posttrain.train.ends import LeaveInTime
from posttrain.train.order import OUTPUTS, Ending, Order, Outcome, read_ending, read_order, write_ending

TRAIN = {"sft": sft.train, "dpo": dpo.train}
ROWS = ("train", "eval")  # inputs; the other one is the model that training starts from

logger = logging.getLogger("posttrain.nodes.worker")  # this module runs as `__main__`


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m posttrain.nodes.worker", description=__doc__.partition("\n")[0])
    parser.add_argument("order", help="gs://, s3:// or path of the order")
    parser.add_argument("sha256", help="SHA-256 of the order")
    return parser


def work(order: Order) -> None:
    """Joins the other ranks, trains, and leaves the outputs and `finished` in the storage.

    Raises:
        ValueError: other ranks were started than ordered, or an input is not what was ordered.
        Diverged, Unfinished: the training ended before its end, as in a stage.
    """
    row = step_of(order.step)
    step = row.section.model_validate(order.config)
    check_ranks(order)
    backend.prepare(step.training.gpu_memory_fraction)
    ranks.wait()
    joined = f"joined: {ranks.count()} ranks on {ranks.num_nodes()} nodes"
    contact, started = Contact(order), time.monotonic()
    logger.info(joined)
    with contact.kept(joined) if ranks.is_first() else nullcontext(), ranks.shared_folder() as folder:
        inputs, files = bring(order, folder)
        outputs = {name: str(folder / OUTPUTS / name) for name in stage.OUTPUTS}
        Path(folder, OUTPUTS).mkdir(exist_ok=True)
        measured = TRAIN[row.stage](
            inputs,
            files=files,
            outputs=outputs,
            step=step,
            checkpoints=checkpoints_of(order, getattr(step, row.stage)),
            deadline=partial(
                LeaveInTime, started=started, limit_seconds=order.limit_seconds, has_lapsed=contact.has_lapsed
            ),
        )
        if ranks.is_first():
            finish(order, outputs, measured)
    ranks.leave()


def check_ranks(order: Order) -> None:
    """Refuses other ranks than those ordered: batches and checkpoints are made for these."""
    started, ordered = (ranks.num_nodes(), ranks.per_node()), (order.num_nodes, order.num_processes_per_node)
    if started != ordered:
        raise ValueError(
            f"started: {started[0]} nodes with {started[1]} ranks each; ordered: {ordered[0]} with {ordered[1]}: look "
            "at PET_NNODES and PET_NPROC_PER_NODE in the pods, and at numNodes and numProcPerNode of what started them"
        )


def bring(order: Order, folder: Path) -> tuple[str, dict[str, str]]:
    """Brings the inputs to each node, and returns the path of the model and those of the rows.

    Raises:
        ValueError: an input is not the one that was ordered.
    """
    paths = {name: str(folder / name) for name in order.inputs}
    if ranks.is_first_of_node():
        for name, kept in order.inputs.items():
            sha256 = results.bring(kept.uri, paths[name])
            if sha256 != kept.sha256:
                raise ValueError(
                    f"{kept.uri}: has SHA-256 {sha256}, and {kept.sha256} was ordered: find out who changed it"
                )
    ranks.wait()
    files = {name: paths.pop(name) for name in ROWS}
    (model,) = paths.values()
    return model, files


def checkpoints_of(order: Order, config: Any) -> Checkpoints:
    """Makes the checkpoints of the attempt, which all ranks write under one name."""
    running = Running(order.step, order.storage_root, order.fingerprint)
    checkpoints = Checkpoints.of(running, limit=config.save_total_limit, is_elastic=config.elastic)
    return replace(checkpoints, suffix=ranks.from_first(lambda: checkpoints.suffix))


def finish(order: Order, outputs: dict[str, str], measured: dict[str, Any]) -> None:
    """Stores the outputs, and then that the attempt is finished."""
    digests = {name: results.send(path, order.uri(OUTPUTS, name)) for name, path in outputs.items()}
    write_ending(order, _ending(order, "finished", outputs=digests, measured=measured))


@contextmanager
def recording(order: Order) -> Iterator[None]:
    """Writes how the block ended if it raises, unless another rank has done so before.

    This rank is still connected to its peers then, so the first one to write is the one that has ended the others.
    """
    try:
        yield
    except BaseException as error:
        outcome = outcome_of(error)
        reason = f"{type(error).__name__}: {error}" if outcome == "failed" else str(error)
        try:
            write_ending(order, _ending(order, outcome, reason=masking.mask(reason)))
        except OSError as away:
            logger.error("how this attempt ended could not be written: %s", away)
        raise


def outcome_of(error: BaseException) -> Outcome:
    """Says in a word how a training ended that raised this error."""
    if isinstance(error, Unfinished):
        return "unfinished"
    if isinstance(error, Diverged):
        return "diverged"
    if backend.is_out_of_memory(error):
        return "out_of_memory"
    return "bad_input" if isinstance(error, ValueError) else "failed"


def _ending(order: Order, outcome: Outcome, **others: Any) -> Ending:
    return Ending(outcome=outcome, rank=ranks.rank(), num_ranks=order.num_ranks, num_nodes=order.num_nodes, **others)


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(sys.argv[1:] if argv is None else argv)
    configure_logging()
    if not ranks.is_first():
        logging.disable(logging.ERROR)  # the first rank logs for all; an error in any other is raised, not logged
    order = read_order(args.order, args.sha256)
    os.environ |= {
        RUN_ID_ENV: order.run_id,
        FRESH_ENV: "1" if order.is_fresh else "",
        HALVINGS_ENV: str(order.num_halvings),
    }
    if ending := read_ending(order):  # as when somebody has deleted its JobSet, and Trainer made another
        raise RuntimeError(f"attempt {order.attempt} has ended already ({ending.outcome}), and starts only once")
    with recording(order):
        work(order)


if __name__ == "__main__":
    main()
