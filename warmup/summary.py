"""The namespace's pools and models in a few words, from what the controller has in memory: looking wakes nothing.

A model's state is what its InferenceService's status says, so that every controller, leading or not, tells the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from predictor.errors import UnknownModel
from predictor.telemetry import Telemetry
from warmup.history import History, Noted, pool_key
from warmup.hotsets import Shown
from warmup.kube import Object
from warmup.objects import condition, is_model
from warmup.pods import Pods
from warmup.view import Pool
from warmup.world import World, heard

Told = dict[str, Any]

HOT_SET_MOMENT: Final = "hearth_controller_hot_set_timestamp_seconds"


class Summary:
    """Answers questions. pools: the controller's own dictionary, replaced when pools change: ask for it each time."""

    def __init__(self, world: World, pods: Pods, history: History, telemetry: Telemetry) -> None:
        self.pools: Mapping[str, Pool] = {}
        self.warmth: Callable[[], Mapping[str, str]] = dict
        """By pool: how it stands with its warmth (prewarm.State). Set by who keeps them warm."""
        self.hot_sets: Callable[[], Mapping[str, Shown]] = dict
        """By pool: what its next pod begins with. Set by who publishes them."""
        self.outlooks: Callable[[str], list[str]] = lambda _pool: []
        """Of a pool: what it is to have before anybody asks, in sentences. Set by who looks ahead."""
        self._world = world
        self._pods = pods
        self._history = history
        self._telemetry = telemetry

    def of_pools(self) -> list[Told]:
        """Every pool: where it is, its running pods, its models by state."""
        states = self._states()
        return [
            {
                "name": pool.name,
                "kind": pool.kind,
                "default": pool.is_default,
                "ready": pool.ready,
                "reason": pool.message or pool.reason,
                "url": pool.url,
                "address": pool.address,
                "service": pool.service,
                "warm": self.warmth().get(pool.name, ""),
                "warm_until_s": pool.warm_until_s,
                "hot_set": self.hot_sets().get(pool.name),
                "pods": [
                    {
                        "name": pod.ref.name,
                        "state": pod.stage,
                        "up_s": pod.report.up_s if pod.report is not None else None,
                        "release": pod.report.release if pod.report is not None else "",
                        "trouble": pod.trouble or (pod.report.unready if pod.report is not None else ""),
                        "warm_up": pod.report.warm_up if pod.report is not None else None,
                    }
                    for pod in self._pods.of(pool.name)
                ],
                "models": dict(sorted(states.get(pool.name, Counter()).items())),
            }
            for pool in sorted(self.pools.values(), key=lambda pool: pool.name)
        ]

    def of_models(self, pool: str = "") -> list[Told]:
        """Every model, or those of one pool, by name."""
        found = (self._model(name) for name in sorted(self._world.models()))
        return [model for model in found if model is not None and pool in ("", model["pool"])]

    def of_model(self, name: str) -> Told:
        """One model. Raises UnknownModel."""
        model = self._model(name)
        if model is None:
            raise UnknownModel(f"no pool of this namespace has a model called {name[:253]!r}")
        return model

    def why(self, name: str) -> tuple[Noted, ...]:
        """What happened to a model, or a pool, or both if they share a name. Raises UnknownModel: there is neither, nor was."""
        events = self._history.of(name) + self._history.of(pool_key(name))
        if not events and name not in self.pools:
            self.of_model(name)
        return tuple(sorted(events, key=lambda noted: noted.at_s))

    def outlook(self, name: str) -> list[str]:
        """How a pool stands with what is done ahead of its traffic, in sentences; []: nothing, or no pool."""
        return self.outlooks(name) if name in self.pools else []

    def count(self) -> None:
        """Bring the gauges up to date."""
        telemetry = self._telemetry
        for gauge in ("hearth_controller_models", "hearth_controller_pods"):
            telemetry.gauge(gauge).clear()
        for pool, states in self._states().items():
            for state, count in states.items():
                telemetry.gauge("hearth_controller_models", pool, state).set(count)
        pods = Counter((pod.ref.pool, pod.stage) for pod in self._pods.of())
        for (pool, state), count in pods.items():
            telemetry.gauge("hearth_controller_pods", pool, state).set(count)
        for gauge in ("hearth_controller_hot_set_models", "hearth_controller_hot_set_bytes", HOT_SET_MOMENT):
            telemetry.gauge(gauge).clear()
        for pool, shown in self.hot_sets().items():
            telemetry.gauge("hearth_controller_hot_set_models", pool).set(shown.models)
            telemetry.gauge("hearth_controller_hot_set_bytes", pool).set(shown.size_bytes)
            telemetry.gauge(HOT_SET_MOMENT, pool).set(shown.at_s)
        for resource, stale_s in self._world.stale_s().items():
            telemetry.gauge("hearth_controller_stale_seconds", resource).set(heard(stale_s))
        telemetry.gauge("hearth_controller_synced").set(self._world.synced)

    def _states(self) -> dict[str, Counter[str]]:
        states: dict[str, Counter[str]] = {name: Counter() for name in self.pools}
        for name in self._world.models():
            found = self._world.inference_services.objects[name]
            pool = self._pool_of(found)
            if pool:
                states[pool][_state(found.get("status") or {})] += 1
        return states

    def _model(self, name: str) -> Told | None:
        found = self._world.inference_services.objects.get(name)
        pool = self._pool_of(found) if found is not None else ""
        if found is None or not pool:
            return None
        status = found.get("status") or {}
        told = status.get("modelStatus") or {}
        ready = condition(found, "Ready")
        state = _state(status)
        failed = "Failed" in state or told.get("transitionStatus") in ("BlockedByFailedLoad", "InvalidSpec")
        return {
            "name": name,
            "pool": pool,
            "state": state,
            "transition": told.get("transitionStatus", ""),
            "ready": ready.get("status") == "True" and status.get("observedGeneration") == found["metadata"].get("generation"),
            "reason": ready.get("message") or ready.get("reason") or "",
            "url": status.get("url", ""),
            "uri": _uri(_model_spec(found)),
            "failure": str((told.get("lastFailureInfo") or {}).get("message", "")) if failed else "",
        }

    def _pool_of(self, found: Object) -> str:
        """The pool's name; "": none of ours."""
        if not is_model(found):
            return ""
        runtime = str(_model_spec(found).get("runtime") or "")
        if runtime:
            return runtime if runtime in self.pools else ""
        return next((pool.name for pool in self.pools.values() if pool.is_default), "")


def _model_spec(found: Object) -> Object:
    predictor = (found.get("spec") or {}).get("predictor") or {}
    spec: Object = predictor.get("model") or predictor.get("onnx") or predictor.get("pytorch") or {}
    return spec


def _state(status: Object) -> str:
    """The state of what is asked for; Pending where nobody said anything yet."""
    states = (status.get("modelStatus") or {}).get("states") or {}
    return str(states.get("targetModelState") or states.get("activeModelState") or "Pending")


def _uri(spec: Object) -> str:
    """Without what stands behind a question mark: somebody may have signed it."""
    if uri := spec.get("storageUri"):
        return str(uri).partition("?")[0]
    return str((spec.get("storage") or {}).get("path") or "")
