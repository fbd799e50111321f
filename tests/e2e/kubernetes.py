"""kubectl for the tests: one namespace, every call and every wait bounded, and a description of it all when something fails."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

CALL_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.25
RESTARTS: Final = 2

Found = TypeVar("Found")


class KubectlFailed(RuntimeError):
    """kubectl ended with an error; the message is its command and what it said."""


def eventually(look: Callable[[], Found | None], *, what: str, timeout_s: float) -> Found:
    """The first answer of ``look`` that is not None. TimeoutError says ``what`` did not happen."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(POLL_S)


class Namespace:
    """One namespace of the cluster that KUBECONFIG names."""

    def __init__(self, name: str) -> None:
        self.name = name

    def kubectl(self, *arguments: str, timeout_s: float = CALL_TIMEOUT_S) -> str:
        """Run kubectl in this namespace; its standard output."""
        command = ["kubectl", "--namespace", self.name, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        if ended.returncode:
            raise KubectlFailed(f"{' '.join(command)}: {ended.stderr.strip()}")
        return ended.stdout

    def items(self, kind: str, *selection: str) -> list[dict[str, Any]]:
        """The objects of a kind, as kubectl's ``-o json`` has them."""
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, *selection, "-o", "json"))["items"]
        return found

    def create(self) -> None:
        """Make the namespace."""
        self.kubectl("create", "namespace", self.name)

    def delete(self) -> None:
        """Remove it and all that is in it; returns when it is gone.

        Services, Deployments and pods first: a namespace that is deleted with pods in it is looked at again only after half
        of their grace period, that is 150 s for a pool. Nobody waits for these pods' drain (30 s; the whole grace period
        where a pod of Knative's never became ready).
        """
        for kinds in ("isvc,ksvc", "deployments"):  # in this order: Knative makes its Deployments anew
            self.kubectl("delete", kinds, "--all", "--wait", "--timeout=60s", timeout_s=70)
        self.kubectl("delete", "pods", "--all", "--grace-period=1", "--wait=false")
        eventually(lambda: None if self.items("pods") else True, what=f"no pod in {self.name}", timeout_s=120)
        self.kubectl("delete", "namespace", self.name, "--wait", "--timeout=180s", timeout_s=190)

    def apply(self, kustomization: Path) -> None:
        """``kubectl apply -k`` of a folder."""
        self.kubectl("apply", "-k", str(kustomization))

    def address(self, kind: str, name: str, *, timeout_s: float) -> str:
        """The host in the object's URL, once the object is Ready. A container that ends again and again is not waited for."""

        def look() -> str | None:
            (found,) = self.items(kind, "--field-selector", f"metadata.name={name}")
            conditions = {condition["type"]: condition["status"] for condition in found.get("status", {}).get("conditions", ())}
            if conditions.get("Ready") == "True":
                return str(found["status"]["url"]).partition("://")[2]
            for pod in self.items("pods"):
                for container in pod["status"].get("containerStatuses", ()):
                    assert container["restartCount"] < RESTARTS, f"{pod['metadata']['name']}: {container['name']} ends"
            return None

        return eventually(look, what=f"{kind} {name} Ready", timeout_s=timeout_s)

    def live_pods(self, service: str) -> list[str]:
        """Names of a Knative Service's pods that have not been told to end."""
        pods = self.items("pods", "--selector", f"serving.knative.dev/service={service}")
        return [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def wait_for_zero(self, service: str, *, timeout_s: float) -> None:
        """Return when no pod serves. One that has been told to end stays Terminating for Knative's drain, some 30 s.

        Knative's own books must say zero, too: a request in the instant between is not forgotten, but was seen to wait
        10 s until they were looked at again.
        """

        def look() -> bool | None:
            scalers = self.items("podautoscalers", "--selector", f"serving.knative.dev/service={service}")
            resting = all(
                scaler["status"].get("actualScale") == scaler["status"].get("desiredScale") == 0 for scaler in scalers
            )
            return True if scalers and resting and not self.live_pods(service) else None

        eventually(look, what=f"{service} at zero pods", timeout_s=timeout_s)

    def description(self) -> str:
        """What one wants to see of a failure: objects, events, and the ends of the containers' logs."""
        parts = []
        for arguments in (
            ("get", "inferenceservices,services.serving.knative.dev,revisions,podautoscalers,pods", "-o", "wide"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("describe", "pods"),
            ("logs", "--selector", "serving.knative.dev/service", "--container", "queue-proxy", "--prefix", "--tail=6"),
            ("logs", "--selector", "serving.knative.dev/service", "--prefix", "--tail=80"),
        ):
            try:
                text = self.kubectl(*arguments)
            except (KubectlFailed, subprocess.TimeoutExpired) as error:
                text = str(error)
            parts.append(f"---- kubectl {' '.join(arguments)}\n{text}")
        return "\n".join(parts)
