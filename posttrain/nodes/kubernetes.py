"""A client for the Kubernetes API, for one kind of object: the TrainJobs of this pod's namespace.

credentials of the pod -> create, get, watch, delete a TrainJob, list its pods; what this pod may do, who it is, and
what it belongs to

It speaks HTTP by itself: the images then have no client of Kubernetes with pins of its own.
"""

import base64
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import environ
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # mounted into every pod
GROUP = "trainer.kubeflow.org"
MANIFESTS = "configs/kubernetes/trainer.yaml"  # what a namespace needs, as far as the user sees to it
VERBS = ("create", "get", "watch", "delete")  # that a launch step needs on TrainJobs
TIMEOUT_SECONDS = 30.0
DELETE_SECONDS = 1.5  # a pod that is ended has about two seconds
AWAY_SECONDS = 900.0  # for which the API is asked again; an upgrade of a cluster takes it away for some minutes
ASK_SECONDS = 10.0  # between two such calls
POD_LABEL = "jobset.sigs.k8s.io/jobset-name"  # of the pods of a TrainJob, whose JobSet has its name

Object = dict[str, Any]
T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kubernetes:
    """The API of the cluster that this pod runs in. A fault that may pass is an `OSError`, a refusal a `ValueError`."""

    url: str
    namespace: str
    credentials: Path  # folder with the pod's token, which is renewed there, and the certificate of the API

    @classmethod
    def of_this_pod(cls) -> "Kubernetes | None":
        """Returns the client of this pod; None outside of a cluster."""
        host, namespace = environ.get("KUBERNETES_SERVICE_HOST"), SERVICE_ACCOUNT / "namespace"
        if not host or not namespace.is_file():
            return None
        host = f"[{host}]" if ":" in host else host  # IPv6
        url = f"https://{host}:{environ.get('KUBERNETES_SERVICE_PORT', '443')}"
        return cls(url, namespace.read_text(encoding="utf-8").strip(), SERVICE_ACCOUNT)

    def create(self, job: Object) -> Object | None:
        """Creates a TrainJob and returns it; None if there is one of this name."""
        return self._call("POST", self._path("trainjobs"), body=job, absent=409)

    def get(self, name: str) -> Object | None:
        """Returns a TrainJob; None if there is none of this name."""
        return self._call("GET", self._path("trainjobs", name), absent=404)

    def wait_for_change(self, job: Object, *, seconds: int) -> None:
        """Returns when a TrainJob is no longer as it was, or after some seconds. Whoever wants to know more gets it."""
        metadata = job["metadata"]
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={metadata['name']}",
            "resourceVersion": metadata.get("resourceVersion", ""),
            "timeoutSeconds": str(seconds),
        }
        with self._answer("GET", self._path("trainjobs"), query=query, seconds=seconds + TIMEOUT_SECONDS) as answer:
            self._check(answer, "GET", self._path("trainjobs"))
            next(answer.iter_lines(), None)  # the first event, or the end

    def delete(self, name: str, *, seconds: float = TIMEOUT_SECONDS) -> None:
        """Deletes a TrainJob, which stays until its pods have ended; nothing happens if there is none."""
        body = {"propagationPolicy": "Foreground"}
        self._call("DELETE", self._path("trainjobs", name), body=body, absent=404, seconds=seconds)

    def pods_of(self, name: str) -> list[Object]:
        """Lists the pods of a TrainJob, ended ones among them as long as Kubernetes keeps them."""
        path, query = f"/api/v1/namespaces/{self.namespace}/pods", {"labelSelector": f"{POD_LABEL}={name}"}
        return self._call("GET", path, query=query)["items"]

    def may(self, verb: str, resource: str, *, group: str = GROUP) -> bool:
        """Tells whether this pod may do something with the objects of its namespace."""
        attributes = {"namespace": self.namespace, "verb": verb, "group": group, "resource": resource}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = self._call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review)
        return bool(answer["status"].get("allowed"))

    def has_runtime(self, name: str) -> bool:
        """Tells whether there is a TrainingRuntime of this name."""
        return self._call("GET", self._path("trainingruntimes", name), absent=404) is not None

    def identity_token(self, audience: str, *, seconds: int = 600) -> str:
        """Returns a token of this pod's service account for an audience, by the TokenRequest API.

        Raises:
            ValueError: the service account may not `create` its own `serviceaccounts/token`.
        """
        account = self._service_account()
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{quote(account)}/token"
        spec = {"audiences": [audience], "expirationSeconds": seconds}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        with self._answer("POST", path, body=body, seconds=TIMEOUT_SECONDS) as answer:
            if answer.status_code == 403:
                raise ValueError(
                    f"service account {account} may not create a token of its own: give it a Role with the verb create "
                    f"on serviceaccounts/token, resourceNames [{account}]"
                )
            self._check(answer, "POST", path)
            return answer.json()["status"]["token"]

    def _service_account(self) -> str:
        """Returns the name of the service account, which the pod's own token says."""
        token = (self.credentials / "token").read_text(encoding="utf-8").strip()
        claims = token.split(".")[1]
        read = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        return read["kubernetes.io"]["serviceaccount"]["name"]

    def owner_of(self, pod: str) -> Object | None:
        """Returns a reference to what a pod belongs to, such as its Workflow; None if it belongs to nothing."""
        found = self._call("GET", f"/api/v1/namespaces/{self.namespace}/pods/{quote(pod)}", absent=404)
        owners = found["metadata"].get("ownerReferences", []) if found else []
        keys = ("apiVersion", "kind", "name", "uid")
        return next(({key: owner[key] for key in keys} for owner in owners if owner.get("controller")), None)

    def _path(self, kind: str, name: str = "") -> str:
        path = f"/apis/{GROUP}/v1alpha1/namespaces/{self.namespace}/{kind}"
        return f"{path}/{quote(name)}" if name else path

    def _call(
        self, method: str, path: str, *, absent: int = 0, seconds: float = TIMEOUT_SECONDS, **options: Object
    ) -> Object | None:
        """Makes a call and returns what it gives; None if it was answered with the status `absent`."""
        with self._answer(method, path, seconds=seconds, **options) as answer:
            if answer.status_code == absent:
                return None
            self._check(answer, method, path)
            return answer.json()

    @contextmanager
    def _answer(self, method: str, path: str, *, body=None, query=None, seconds: float) -> Iterator[Any]:
        import requests

        token = (self.credentials / "token").read_text(encoding="utf-8").strip()
        options = {"params": query, "json": body, "timeout": seconds, "stream": bool(query and "watch" in query)}
        with requests.Session() as session:
            session.trust_env = False  # a proxy for the internet is none for the API
            session.headers["Authorization"] = f"Bearer {token}"
            session.verify = str(self.credentials / "ca.crt")
            with session.request(method, self.url + path, **options) as answer:
                yield answer

    @staticmethod
    def _check(answer: Any, method: str, path: str) -> None:
        """Raises an OSError for an answer that may be another one later, and a ValueError for a refusal."""
        if answer.ok:
            return
        try:
            message = json.loads(answer.text)["message"]
        except (ValueError, KeyError, TypeError):
            message = answer.reason
        text = (
            f"{method} {path}: the Kubernetes API answered {answer.status_code}: {' '.join(str(message).split())[:300]}"
        )
        if answer.status_code == 403:
            raise ValueError(f"{text}; give this pod's service account the Role of {MANIFESTS}")
        if answer.status_code in (400, 404, 405, 422):
            raise ValueError(f"{text}; look whether Kubeflow Trainer 2 is installed, and at the step's placement")
        raise OSError(text)


def condition(job: Object, name: str) -> Object | None:
    """Returns a condition of a TrainJob, such as Complete, Failed or Suspended, if it is true."""
    conditions = job.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one.get("type") == name and one.get("status") == "True"), None)


def until_answered(call: Callable[[], T]) -> T:
    """Makes a call to the API, again and again while that is away.

    Raises:
        OSError: it was away for too long.
    """
    deadline = time.monotonic() + AWAY_SECONDS
    while True:
        try:
            return call()
        except OSError as error:
            if time.monotonic() >= deadline:
                raise
            logger.warning("asked again: %s", " ".join(str(error).split()))
            time.sleep(ASK_SECONDS)


def is_over(pod: Object) -> bool:
    """Tells whether the containers of a pod have ended."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def wait_of(pod: Object) -> str:
    """Returns why a pod has not started yet, if Kubernetes says so: no node has room, or its image cannot be pulled."""
    status = pod.get("status", {})
    waiting = [one.get("state", {}).get("waiting") for one in status.get("containerStatuses", [])]
    unplaced = [one for one in status.get("conditions", []) if one.get("reason") == "Unschedulable"]
    reasons = [one for one in [*waiting, *unplaced] if one]
    return ", ".join(f"{one.get('reason')}: {one.get('message', '')}".strip(" :") for one in reasons)


def has_ended(job: Object | None) -> bool:
    """Tells whether a TrainJob is complete, has failed, or is gone. Pods of one that failed may still save."""
    return job is None or bool(condition(job, "Complete") or condition(job, "Failed"))
