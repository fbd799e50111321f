"""``hearth demo``, in the order in which it happens: train, upload, serve, ask, judge, invite, clean up."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from rich.text import Text

from predictor import human
from predictor.client import DEFAULT_ADDRESS, NoServer
from predictor.demo import s3, traffic
from predictor.demo.children import Children, Stopped, free_port, stoppable
from predictor.demo.server import HOST, Budgets, DemoFailed, Server, environment, serve, stages
from predictor.demo.show import FORMAT_NAMES, Scene, Screen, Shown, digit, summary
from predictor.demo.tally import Tally, drops_by_tier

if TYPE_CHECKING:
    from predictor.demo.models import DemoModel, Digits

EXTRAS: Final = {"moto": "moto", "sklearn": "scikit-learn", "onnx": "onnx"}
"""Module → package: what the demo needs beyond what serving needs."""

DEVICE_MODELS: Final = 6
RAM_MODELS: Final = 12
"""Budgets hold about this many of the 24 models: evictions in both tiers, returns from RAM and from S3 are all seen."""

COMPUTING_BYTES: Final = 1 << 20
"""Room on the device for the largest computation: 200 to 300 kB measured."""

DRAW_EVERY_S: Final = 0.25
BURST_TIMEOUT_S: Final = 120.0
REQUEST_TIMEOUT_S: Final = 0.5
"""The burst may take BURST_TIMEOUT_S, and this more for each request; it needs a hundredth of it."""

STAGES: Final = {
    "listening": "listening",
    "asked": "S3 asked",
    "fetched": "fetched",
    "imported": "torch",
    "built": "built",
    "answered": "answered",
}


@dataclass(frozen=True)
class Wishes:
    """What the command line asked for."""

    keep: bool = False
    requests: int = 1500
    seed: int = 1
    live: bool = True


def demo(wishes: Wishes) -> int:
    """Run the demo. 0: every answer was right; 1: something was not; 128 + signal: somebody ended it."""
    missing = [package for module, package in EXTRAS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise DemoFailed(f"the demo also needs {', '.join(missing)}: pip install 'hearth[demo]'")
    screen = Screen(live=wishes.live)
    try:
        with stoppable(), TemporaryDirectory(prefix="hearth-") as folder, Children(Path(folder)) as children:
            return _Demo(wishes, screen, children).run()
    except KeyboardInterrupt:
        screen.show("\n  ended; nothing is left running")
        return 128 + 2
    except Stopped as stop:
        return stop.exit_code


class _Demo:
    """One run: what its acts share."""

    def __init__(self, wishes: Wishes, screen: Screen, children: Children) -> None:
        self._wishes = wishes
        self._screen = screen
        self._children = children

    def run(self) -> int:
        """All acts. Returns the exit code."""
        self._screen.title(
            "Hearth: 24 models share a device that holds about six of them",
            "Handwritten digits, models trained now, S3's protocol, the real server: all on this machine",
        )
        # Its imports take a second: they run beside ours.
        command = [sys.executable, "-m", "predictor.demo.s3"]
        store = self._children.start("s3", command, environment(), talks=True)
        digits, models = self._train()
        endpoint = self._upload(store, models)
        plan = traffic.Plan(
            host=HOST,
            port=free_port(8080),
            names=[model.name for model in models],
            expected=[model.expected for model in models],
            images=digits.test_images.tolist(),
            labels=digits.test_labels.tolist(),
            requests=traffic.schedule(
                models=len(models), images=len(digits.test_labels), requests=self._wishes.requests, seed=self._wishes.seed
            ),
        )
        scene = Scene([Shown(model.name, model.format, model.size_bytes) for model in models], len(plan.requests), Tally())
        server = self._serve(plan, endpoint, _budgets(models))
        try:
            self._burst(plan, server, scene)
        except NoServer as gone:
            ended = server.process.poll()
            told = "does not answer on its admin port" if ended is None else f"ended with status {ended}"
            raise DemoFailed(f"hearth serve {told}\n{self._children.last_words('serve')}") from gone
        self._screen.show(summary(scene, alone=_alone(plan), clients=plan.clients))
        if not scene.tally.faultless:
            self._screen.show(Text("\n".join([*scene.tally.errors, self._children.last_words("serve")]), "red"))
            return 1
        self._invite(plan, server)
        return 0

    def _train(self) -> tuple[Digits, list[DemoModel]]:
        with self._screen.step("importing torch, onnx and scikit-learn") as step:
            from predictor.demo import models as training  # noqa: PLC0415 (seconds, behind a spinner)

            step.done = "imported torch, onnx and scikit-learn"
        with self._screen.step(f"training {training.MODEL_COUNT} models") as step:
            digits = training.load(self._wishes.seed)
            models = []
            for model in training.trained(digits, seed=self._wishes.seed):
                models.append(model)
                step.now(f"training {training.MODEL_COUNT} models: {len(models)} done")
            sizes = sorted(model.size_bytes for model in models)
            accuracies = sorted(model.accuracy for model in models)
            counts = Counter(FORMAT_NAMES[model.format] for model in models)
            formats = " and ".join(f"{count} {name}" for name, count in counts.items())
            step.done = f"trained {formats} models on {len(digits.train_labels):,} images of handwritten digits"
            step.details = [
                f"{human.size(sizes[0])} to {human.size(sizes[-1])} each, {human.size(sum(sizes))} together",
                f"{accuracies[0]:.0%} to {accuracies[-1]:.0%} right on {len(digits.test_labels)} images they have not seen",
            ]
        return digits, models

    def _upload(self, store: Popen[bytes], models: list[DemoModel]) -> str:
        with self._screen.step("uploading") as step:
            port = s3.read_port(store)
            if not port:
                raise DemoFailed(f"the S3 server did not start\n{self._children.last_words('s3')}")
            client = s3.client(port)
            for model in models:
                s3.upload(client, model.name, model.files)
            step.done = f"uploaded them to an S3 server on {HOST}:{port}"
        return f"http://{HOST}:{port}"

    def _serve(self, plan: traffic.Plan, endpoint: str, budgets: Budgets) -> Server:
        """Start the server and let it answer once, from nothing: what a pod from zero pays."""
        with self._screen.step("starting hearth serve, and asking it at once") as step:
            server = serve(self._children, endpoint, port=plan.port, budgets=budgets)
            first = traffic.Client(plan)
            outcome = first.ask(plan.requests[0])
            first.close()
            if outcome.error or outcome.different:
                told = outcome.error or "is not what the model answers when it runs alone"
                raise DemoFailed(f"the first answer: {told}\n{self._children.last_words('serve')}")
            took = stages(server)
            step.done = f"started hearth serve on http://{HOST}:{server.port}; its first answer is right"
            step.details = [
                f"cold start: {', '.join(_stage(word, took[stage]) for stage, word in STAGES.items() if stage in took)} s",
                server.command.replace(" --cpu-copy", "\n      --cpu-copy"),
            ]
        return server

    def _burst(self, plan: traffic.Plan, server: Server, scene: Scene) -> None:
        """Send everything from a process of its own, and draw what happens meanwhile."""
        path = self._children.folder / "plan.json"
        plan.write(path)
        command = [sys.executable, "-m", "predictor.demo.traffic", str(path)]
        clients = self._children.start("clients", command, environment(), talks=True)
        assert clients.stdout is not None, "the clients were started without a pipe"
        began_s = time.monotonic()
        deadline_s = began_s + BURST_TIMEOUT_S + REQUEST_TIMEOUT_S * len(plan.requests)
        unread = b""
        drawn_s = 0.0
        with self._screen.burst():
            while scene.tally.requests < len(plan.requests):
                now_s = time.monotonic()
                if now_s > deadline_s:
                    raise DemoFailed(f"after {now_s - began_s:.0f} s {scene.tally.requests} requests were answered, not all")
                if select.select([clients.stdout], [], [], DRAW_EVERY_S)[0]:
                    chunk = os.read(clients.stdout.fileno(), 1 << 16)
                    if not chunk:
                        raise DemoFailed(f"the clients ended too early\n{self._children.last_words('clients')}")
                    *lines, unread = (unread + chunk).split(b"\n")
                    for outcome in traffic.decoded(lines):
                        scene.tally.add(outcome)
                scene.elapsed_s = time.monotonic() - began_s
                if now_s - drawn_s >= DRAW_EVERY_S:
                    scene.residency = server.admin.residency()
                    self._screen.update(scene)
                    drawn_s = now_s
            scene.residency = server.admin.residency()
            self._screen.update(scene)
        scene.drops = drops_by_tier(server.admin.metrics())

    def _invite(self, plan: traffic.Plan, server: Server) -> None:
        """The line to try, with a real image that the model names rightly; with --keep, for as long as somebody likes."""
        model = len(plan.names) - 1
        image = next(place for place, label in enumerate(plan.labels) if plan.expected[model][place] == label)
        pixels = [int(value) for value in plan.images[image]]
        tensor = {"name": "pixels", "datatype": "FP32", "shape": [1, len(pixels)], "data": pixels}
        body = json.dumps({"inputs": [tensor]}, separators=(",", ":"))
        url = f"http://{HOST}:{server.port}/v2/models/{plan.names[model]}/infer"
        self._screen.show(
            Text.assemble(
                (f"  Ask {plan.names[model]} what this is", "bold"),
                (f"  (of ten logits, the one at {plan.labels[image]} should be the largest)\n", "dim"),
            )
        )
        self._screen.show(digit(pixels))
        self._screen.show("")
        if not self._wishes.keep:
            self._screen.line(f"curl -s {url} -d '{body}'")
            told = f"\n  The server ends with the demo; `{_hearth()} demo --keep` leaves it running for this.\n"
            self._screen.show(Text(told, "dim"))
            return
        path = self._children.folder / f"{plan.labels[image]}.json"
        path.write_text(body)
        address = "" if server.admin.address == DEFAULT_ADDRESS else f" --address {server.admin.address}"
        self._screen.line(f"curl -s {url} -d @{path}")
        self._screen.line(f"{_hearth()} ps{address}")
        self._screen.show(Text("\n  The server runs until Ctrl-C.", "bold"))
        self._wait(server)

    def _wait(self, server: Server) -> None:
        try:
            status = server.process.wait()
        except KeyboardInterrupt:
            self._screen.show("\n  ended; nothing is left running")
            return
        raise DemoFailed(f"hearth serve ended with status {status}\n{self._children.last_words('serve')}")


def _alone(plan: traffic.Plan) -> float:
    """The accuracy on the same images of the same models when each runs by itself."""
    answers = [
        plan.expected[request.model][image] == plan.labels[image] for request in plan.requests for image in request.images
    ]
    return sum(answers) / len(answers)


def _stage(word: str, at_s: float) -> str:
    return f"{word} {at_s:.2f}" if at_s < 1 else f"{word} {at_s:.1f}"


def _hearth() -> str:
    """How this command is typed here."""
    if shutil.which("hearth"):
        return "hearth"
    return sys.argv[0] if Path(sys.argv[0]).name == "hearth" else "python -m predictor.boot"


def _budgets(models: list[DemoModel]) -> Budgets:
    """Room for about DEVICE_MODELS and RAM_MODELS of them."""
    mean_bytes = sum(model.size_bytes for model in models) // len(models)
    return Budgets(device_bytes=DEVICE_MODELS * mean_bytes + COMPUTING_BYTES, ram_bytes=RAM_MODELS * mean_bytes)
