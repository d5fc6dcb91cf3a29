"""Ranks on the CPU, over gloo, forked from the test: torch and trl are imported once for all of them."""

import json
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def in_ranks(
    function: Callable[[int], Any], *, num_nodes: int = 1, per_node: int = 2, disks: Path | None = None
) -> list[Any]:
    """Returns what `function(rank)` returns in each rank, or the class and message of what it raises.

    Below `disks`, if given, each node has a folder of its own for temporary files.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    common |= {"WORLD_SIZE": str(num_nodes * per_node), "LOCAL_WORLD_SIZE": str(per_node)}
    context = multiprocessing.get_context("fork")
    receivers, started = [], []
    for rank in range(num_nodes * per_node):
        receiver, sender = context.Pipe(duplex=False)
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank % per_node)}
        disk = disks and disks / f"disk-{rank // per_node}"
        process = context.Process(target=play, args=(function, rank, common | own, disk, sender))
        process.start()
        sender.close()
        receivers.append(receiver)
        started.append(process)
    results = [_received(receiver) for receiver in receivers]
    for process in started:
        process.kill()
        process.join()
    return results


def _received(receiver) -> Any:
    """Returns what a rank has sent, `hangs`, or `killed` if it could send nothing."""
    with receiver:
        if not receiver.poll(60):
            return "hangs"
        try:
            return json.loads(receiver.recv_bytes())
        except EOFError:
            return "killed"


def play(function: Callable[[int], Any], rank: int, environment: dict[str, str], disk: Path | None, sender) -> None:
    """Calls `function` as a rank, and sends what it returns or raises."""
    os.environ |= environment
    if disk:
        disk.mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = str(disk)
    try:
        result = function(rank)
    except BaseException as error:  # noqa: BLE001  how a rank ends is what is asked
        result = [type(error).__name__, str(error)]
    sender.send_bytes(json.dumps(result).encode())
