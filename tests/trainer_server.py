"""The API of a cluster with Kubeflow Trainer 2.3, for tests: over TLS, with as much as a launch step uses.

A TrainJob that is created is checked by the published models, and then really runs: each of its nodes is its command as
a process on this machine, with the variables PET_* that Trainer gives to torch. What the controllers of Trainer, JobSet
and Job were read to do:

- A node that ends with an error ends the others by SIGTERM, and by SIGKILL after the grace that the runtime gives; the
  TrainJob is Failed. It is Complete when all nodes ended with 0.
- A queue suspends a TrainJob until it is admitted. `activeDeadlineSeconds` counts from then on.
- A TrainJob that is deleted in the foreground stays, with a `deletionTimestamp`, until its pods have ended. Those
  of one that has failed are being deleted, and run until they have ended.
- Nothing is said in a TrainJob about pods that cannot start.
"""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubeflow_trainer_api.models as models
import yaml

MANIFESTS = Path("configs/kubernetes/trainer.yaml")
NAMESPACE, TOKEN, POD, WORKFLOW = "ml", "token-of-the-pod", "train-sft-1", "post-training-x7k2p"
POD_LABEL = "jobset.sigs.k8s.io/jobset-name"
TORCHRUN = ["-m", "torch.distributed.run"]
TICK_SECONDS = 0.02
PHASES = {None: "Running", 0: "Succeeded"}  # of a pod, by the exit code of its process; any other: Failed


def manifests() -> dict[str, dict[str, Any]]:
    """Returns the objects that the documentation has applied to a cluster, by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all(MANIFESTS.read_text())}


def node_commands(job: dict[str, Any], *, worker: str) -> list[tuple[list[str], dict[str, str]]]:
    """Returns command and variables of each node of a TrainJob. A `worker` of a test's own runs without torchrun."""
    trainer = job["spec"]["trainer"]
    command = [sys.executable if word == "python" else word for word in [*trainer["command"], *trainer["args"]]]
    if worker:
        assert command[1:5] == [*TORCHRUN, "-m", "posttrain.nodes.worker"]
        command = [command[0], "-m", worker, *trainer["args"]]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {one["name"]: one["value"] for one in trainer["env"] if "value" in one}
    reserved = [name for name in values if name.startswith("PET_")]
    assert not reserved, f"the webhook refuses {reserved}"
    count = trainer["numNodes"]
    ranks = {"PET_NNODES": count, "PET_NPROC_PER_NODE": trainer["numProcPerNode"], "PET_MASTER_ADDR": "127.0.0.1"}
    shared = values | {name: str(value) for name, value in ranks.items()} | {"PET_MASTER_PORT": str(port)}
    own = {"GLOO_SOCKET_IFNAME": "lo", "JOB_NAME": job["metadata"]["name"]}
    return [(command, shared | own | {"PET_NODE_RANK": str(node)}) for node in range(count)]


@dataclass
class Running:
    """A TrainJob, and its nodes as processes."""

    job: dict[str, Any]
    queue_seconds: float
    grace_seconds: float
    worker: str
    environment: dict[str, str]
    is_pullable: bool = True
    nodes: list[subprocess.Popen] = field(default_factory=list)
    stopped_at: float | None = None
    ended: dict[str, str] | None = None  # reason and message of its end
    created_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0

    def start(self) -> None:
        self.started_at = time.monotonic()
        if not self.is_pullable:
            return
        for command, variables in node_commands(self.job, worker=self.worker):
            environment = {name: value for name, value in os.environ.items() if not name.startswith(("KUBE", "KFP"))}
            environment |= self.environment | variables
            self.nodes.append(subprocess.Popen(command, env=environment, start_new_session=True))

    def stop(self) -> None:
        """Asks the nodes to end. The kubelet sends SIGTERM to the first process of a container."""
        if self.stopped_at is None:
            self.stopped_at = time.monotonic()
            for node in self.nodes:
                with suppress(ProcessLookupError):
                    node.terminate()

    def vanish(self) -> None:
        """Loses its JobSet and all pods of it, at once, and nobody makes another."""
        nodes, self.nodes = self.nodes, []
        for node in nodes:
            os.killpg(node.pid, signal.SIGKILL)
            node.wait()

    def kill(self) -> None:
        for node in self.nodes:
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()

    def tick(self) -> bool:
        """Does what controllers and kubelet do; returns whether the object has changed."""
        now, limit = time.monotonic(), self.job["spec"]["activeDeadlineSeconds"]
        if self.ended is None and not self.started_at and not self.job["metadata"].get("deletionTimestamp"):
            if now - self.created_at < self.queue_seconds:
                return False
            self.start()
            return self.says()
        if self.stopped_at is not None and now - self.stopped_at > self.grace_seconds:
            self.kill()
        codes = [node.poll() for node in self.nodes]
        if self.ended is None and self.started_at:
            if any(codes):
                failed = [at for at, code in enumerate(codes) if code]
                self.ended = {"reason": "JobsFailed", "message": f"jobset failed: pods {failed} of node failed"}
                self.stop()
            elif codes and all(code == 0 for code in codes):
                self.ended = {"reason": "JobsCompleted", "message": "jobset completed successfully", "type": "Complete"}
            elif now - self.started_at > limit:
                self.ended = {"reason": "DeadlineExceeded", "message": "TrainJob exceeded its deadline"}
                self.stop()
            return self.says() if self.ended else False
        return False

    def says(self) -> bool:
        """Writes what is known into the status, as conditions."""
        conditions = [_condition("Suspended", "False", "Resumed", "it was admitted")] if self.started_at else []
        if self.ended:
            kind = self.ended.get("type", "Failed")
            conditions.append(_condition(kind, "True", self.ended["reason"], self.ended["message"]))
        self.job["status"] = {"conditions": conditions}
        return True

    def pods(self) -> list[dict[str, Any]]:
        """Returns its pods, which exist once it is admitted."""
        deleted = {"deletionTimestamp": datetime.now(UTC).isoformat()} if self.stopped_at is not None else {}
        names = [
            f"{self.job['metadata']['name']}-node-0-{node}" for node in range(self.job["spec"]["trainer"]["numNodes"])
        ]
        if self.started_at and not self.is_pullable:
            waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "train": not found'}
            status = {"phase": "Pending", "containerStatuses": [{"name": "node", "state": {"waiting": waiting}}]}
            return [{"metadata": {"name": name} | deleted, "status": status} for name in names]
        phases = [PHASES.get(node.poll(), "Failed") for node in self.nodes]
        pairs = zip(names, phases, strict=False)
        return [{"metadata": {"name": name} | deleted, "status": {"phase": phase}} for name, phase in pairs]


def _condition(kind: str, status: str, reason: str, message: str) -> dict[str, str]:
    now = datetime.now(UTC).isoformat()
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now}


@dataclass
class Trainer:
    """A cluster: its TrainJobs, what it was asked, and the faults that it will answer with."""

    folder: Path  # of the credentials that it gives to pods
    port: int = 0
    allowed: set[str] = field(default_factory=lambda: {"create", "get", "list", "watch", "delete"})
    runtimes: set[str] = field(default_factory=lambda: {"posttrain"})
    queue_seconds: float = 0.0
    grace_seconds: float = 20.0
    worker: str = ""  # module that runs instead of torchrun and the workers; empty: these
    environment: dict[str, str] = field(default_factory=dict)  # of every pod, beside what the TrainJob gives
    is_pullable: bool = True  # the image of the pods
    faults: dict[str, list[int]] = field(default_factory=dict)  # of the next calls: verb -> statuses
    calls: list[str] = field(default_factory=list)  # verb and name
    jobs: dict[str, Running] = field(default_factory=dict)
    gone: dict[str, Running] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    num_listed: int = 0  # how often pods were listed
    version: int = 1

    def created(self) -> list[str]:
        """Returns the names of all TrainJobs that were ever created, in order."""
        return [call.split()[1] for call in self.calls if call.startswith("create ") and not call.endswith("409")]

    def deleted(self) -> list[str]:
        """Returns the names of the TrainJobs that somebody wanted to have deleted."""
        return [call.split()[1] for call in self.calls if call.startswith("delete ")]

    def num_alive(self) -> int:
        """Returns how many TrainJobs have nodes that run."""
        return sum(any(node.poll() is None for node in running.nodes) for running in self.jobs.values())

    def create(self, job: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        models.TrainerV1alpha1TrainJob.from_dict(job)
        name = job["metadata"]["name"]
        if name in self.jobs:
            self.calls.append(f"create {name} 409")
            return 409, {"message": f'trainjobs.trainer.kubeflow.org "{name}" already exists'}
        self.calls.append(f"create {name}")
        job["metadata"] |= {"uid": str(uuid.uuid4()), "namespace": NAMESPACE}
        job["status"] = {}
        if self.queue_seconds:
            job["status"] = {"conditions": [_condition("Suspended", "True", "Suspended", "waits for quota")]}
        running = Running(job, self.queue_seconds, self.grace_seconds, self.worker, self.environment)
        running.is_pullable = self.is_pullable
        self.jobs[name] = running
        self._touch(running)
        return 201, job

    def delete(self, name: str) -> tuple[int, dict[str, Any]]:
        self.calls.append(f"delete {name}")
        if name not in self.jobs:
            return 404, {"message": f'trainjobs.trainer.kubeflow.org "{name}" not found'}
        running = self.jobs[name]
        running.job["metadata"]["deletionTimestamp"] = datetime.now(UTC).isoformat()
        running.stop()
        self._touch(running)
        return 200, running.job

    def tick(self) -> None:
        """Lets time pass."""
        with self.changed:
            for name, running in list(self.jobs.items()):
                is_changed = running.tick()
                is_deleted = "deletionTimestamp" in running.job["metadata"]
                if is_deleted and all(node.poll() is not None for node in running.nodes):
                    self.gone[name] = self.jobs.pop(name)
                    is_changed = True
                if is_changed:
                    self._touch(running)

    def _touch(self, running: Running) -> None:
        with self.changed:
            self.version += 1
            running.job["metadata"]["resourceVersion"] = str(self.version)
            self.changed.notify_all()

    def stop(self) -> None:
        for running in [*self.jobs.values(), *self.gone.values()]:
            running.kill()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    trainer: Trainer

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        kind, name = self._target(url.path)
        if query.get("watch") == "true":
            self._guarded("watch", lambda: self._watch(query))
        elif kind == "trainjobs":
            self._guarded("get", lambda: self._get(self.trainer.jobs.get(name)))
        elif kind == "trainingruntimes":
            is_there = name in self.trainer.runtimes
            self._send(*((200, manifests()["TrainingRuntime"]) if is_there else (404, {"message": "not found"})))
        elif kind == "pods" and not name:
            self._guarded("list", lambda: self._list_pods(query["labelSelector"]))
        elif kind == "pods":
            owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": WORKFLOW, "uid": "w-1"}
            self._send(200, {"metadata": {"name": name, "ownerReferences": [owner | {"controller": True}]}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._target(urlsplit(self.path).path)[0] == "selfsubjectaccessreviews":
            asked = body["spec"]["resourceAttributes"]
            assert asked["namespace"] == NAMESPACE
            is_allowed = asked["verb"] in self.trainer.allowed
            self._send(201, body | {"status": {"allowed": is_allowed}})
        else:
            self._guarded("create", lambda: self._send(*self.trainer.create(body)))

    def do_DELETE(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["propagationPolicy"] == "Foreground"
        name = self._target(urlsplit(self.path).path)[1]
        self._guarded("delete", lambda: self._send(*self.trainer.delete(name)))

    def _guarded(self, verb: str, answer: Any) -> None:
        waiting = self.trainer.faults.get(verb)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"message": "Unauthorized"})
        elif verb not in self.trainer.allowed:
            self._send(403, {"message": f"trainjobs is forbidden: cannot {verb}"})
        elif waiting:
            self._send(waiting.pop(0), {"message": "etcdserver: request timed out"})
        else:
            answer()

    def _get(self, running: Running | None) -> None:
        self._send(*((200, running.job) if running else (404, {"message": "not found"})))

    def _list_pods(self, selector: str) -> None:
        self.trainer.num_listed += 1
        running = self.trainer.jobs.get(selector.removeprefix(f"{POD_LABEL}="))
        self._send(200, {"items": running.pods() if running else []})

    def _watch(self, query: dict[str, str]) -> None:
        name = query["fieldSelector"].removeprefix("metadata.name=")
        deadline = time.monotonic() + int(query["timeoutSeconds"])
        event = b""
        with self.trainer.changed:
            while (left := deadline - time.monotonic()) > 0:
                running = self.trainer.jobs.get(name)
                if running is None:
                    event = json.dumps({"type": "DELETED"}).encode() + b"\n"
                    break
                if int(running.job["metadata"]["resourceVersion"]) > int(query["resourceVersion"]):
                    event = json.dumps({"type": "MODIFIED", "object": running.job}).encode() + b"\n"
                    break
                self.trainer.changed.wait(left)
        self._send_bytes(200, event)

    @staticmethod
    def _target(path: str) -> tuple[str, str]:
        """Returns the kind of object, and its name; the object is in the pod's namespace."""
        parts = path.strip("/").split("/")
        if "namespaces" not in parts:
            return parts[-1], ""
        at = parts.index("namespaces")
        assert parts[at + 1] == NAMESPACE, path
        return (*parts[at + 2 :], "")[:2]

    def _send(self, status: int, body: dict[str, Any]) -> None:
        self._send_bytes(status, json.dumps(body).encode())

    def _send_bytes(self, status: int, data: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):  # a client that was killed
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    context: ssl.SSLContext

    def finish_request(self, request, client_address) -> None:
        try:
            with self.context.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)
        except OSError:
            pass  # a client that was killed in the middle of a call


@contextmanager
def serving(folder: Path, **behaviour: Any) -> Iterator[Trainer]:
    """Serves a cluster, and writes into `folder` the credentials that it mounts into pods."""
    write_credentials(folder)
    trainer = Trainer(folder, **behaviour)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"trainer": trainer}))
    server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.context.load_cert_chain(folder / "ca.crt", folder / "key.pem")
    trainer.port = server.server_address[1]
    over = threading.Event()

    def controllers() -> None:
        while not over.wait(TICK_SECONDS):
            trainer.tick()

    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)), threading.Thread(target=controllers)]
    for thread in threads:
        thread.start()
    try:
        yield trainer
    finally:
        over.set()
        server.shutdown()
        for thread in threads:
            thread.join()
        server.server_close()
        trainer.stop()


def write_credentials(folder: Path) -> None:
    """Writes token, namespace and certificate as the kubelet mounts them, and the key of the server beside them."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder.mkdir(parents=True)
    (folder / "token").write_text(TOKEN)
    (folder / "namespace").write_text(NAMESPACE)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(address, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "ca.crt").write_bytes(certificate.public_bytes(encoding))
    (folder / "key.pem").write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
