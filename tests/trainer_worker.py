"""A node of a TrainJob that trains nothing, for tests of the launch step: it ends as its plan says for each attempt."""

import os
import signal
import sys
import time
from pathlib import Path

from posttrain import storage
from posttrain.step.digests import digest
from posttrain.train.order import ENDING, OUTPUTS, PROGRESS, Ending, LeaseReader, Order, read_order, write_ending

RESULTS = {
    "adapter": "adapter/adapter_model.safetensors",
    "metrics": "metrics",
    "curve": "curve",
    "logs": "logs/x.jsonl",
}


def end(order: Order, outcome: str, **values) -> None:
    write_ending(order, Ending(outcome=outcome, num_ranks=order.num_ranks, num_nodes=order.num_nodes, **values))
    sys.exit({"finished": 0, "unfinished": 75}.get(outcome, 1))


def finish(order: Order) -> None:
    folder = Path(os.environ["FOLDER"], f"worker-{order.attempt}")
    for file in RESULTS.values():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(f"{file} of {order.inputs['train'].sha256}")
    for name in RESULTS:
        send = storage.upload_folder if (folder / name).is_dir() else storage.upload_file
        send(folder / name, order.uri(OUTPUTS, name))
    outputs = {name: digest(folder / name) for name in RESULTS}
    end(order, "finished", outputs=outputs, measured={"train_loss": 0.5})


def main() -> None:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    order, node = read_order(*sys.argv[1:]), int(os.environ["PET_NODE_RANK"])
    Path(os.environ["FOLDER"], f"pid-{order.attempt}-{node}").write_text(str(os.getpid()))
    for name, kept in order.inputs.items():
        copy = Path(os.environ["FOLDER"], f"{name}-{order.attempt}-{node}")
        (storage.download_file if storage.exists(kept.uri) else storage.download_folder)(kept.uri, copy)
        assert digest(copy) == kept.sha256
    plan = os.environ["PLAN"].split(",")[order.attempt - 1]
    lease = LeaseReader(order, clock=time.monotonic)
    if node == 0:
        storage.write_bytes(order.uri(PROGRESS), f"step {order.attempt}/9 loss 0.5".encode())
    if plan == "finished" and node == 0:
        finish(order)
    if plan == "killed" and node == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if plan == "leaves" and node == 1:
        sys.exit(75)
    if plan == "saves slowly" and node == 1:
        while not Path(os.environ["FOLDER"], f"pid-{order.attempt}-0").exists():  # a signal ends it before that
            time.sleep(0.02)
        end(order, "unfinished", reason="stopped at step 4/9: SIGTERM")
    if plan == "saves slowly":  # its pod is asked to end only when the TrainJob has failed
        while not Path(os.environ["FOLDER"], "saved").exists():
            time.sleep(0.02)
        sys.exit(75)
    if plan == "unfinished in part" and node == 1:  # it hangs before it ends
        time.sleep(100)
    if plan == "unfinished in part":
        write_ending(order, Ending(outcome="unfinished", num_ranks=order.num_ranks, num_nodes=order.num_nodes))
        time.sleep(100)
    if plan in ("killed", "leaves"):  # its peer waits for it in a collective, which no signal interrupts
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(100)
    while plan == "waits" or (plan == "finished" and not storage.exists(order.uri(ENDING))):
        if stopped or lease.has_lapsed():
            end(order, "unfinished", reason="stopped at step 4/9: SIGTERM" if stopped else "the lease has lapsed")
        if Path(os.environ["FOLDER"], "finish").exists():
            finish(order) if node == 0 else sys.exit(0)
        time.sleep(0.02)
    if plan == "hangs":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(100)
    if plan != "finished" and node == 0:
        end(order, plan, reason=f"{plan} at step 4/9")


if __name__ == "__main__":
    main()
