"""What the demo shows: a line per step, one live picture of what is resident where, and a summary. Fits 100 columns.

Three colours mean the same everywhere: green is the device (hot), yellow is RAM, blue is S3.
What stays out: numbers are added up in tally.py, and asked for in run.py.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.status import Status
from rich.table import Table
from rich.text import Text

from predictor import human
from predictor.demo.tally import STARTS, Tally, percentile
from predictor.report import ModelReport, Residency

WIDTH: Final = 100
TIER_BAR: Final = 40
MODEL_BAR: Final = 13
PLAIN_PARTS: Final = 5
"""Without a terminal the burst says how far it is this many times."""

COLOURS: Final = {"hot": "green", "device": "green", "ram": "yellow", "s3": "blue", "moving": "magenta"}
DOTS: Final = {"device": "●", "ram": "◐", "s3": "○", "moving": "◌"}
WORDS: Final = {"device": "on the device", "ram": "in RAM", "s3": "only in S3", "moving": "on its way"}
FORMAT_NAMES: Final = {"pytorch": "PyTorch", "onnx": "ONNX"}
START_WORDS: Final = {
    "hot": ("hot", "the model was on the device"),
    "ram": ("from RAM", "built from the copy in RAM"),
    "s3": ("from S3", "fetched from S3, then built"),
}
SHADES: Final = " ░▒▓█"


@dataclass(frozen=True)
class Shown:
    """One model of the catalogue as the screen needs it."""

    name: str
    format: str
    size_bytes: int


@dataclass
class Scene:
    """Everything that one picture of the burst is drawn from."""

    models: Sequence[Shown]
    requests: int
    tally: Tally
    residency: Residency | None = None
    elapsed_s: float = 0.0
    drops: Counter[str] = field(default_factory=Counter)

    @property
    def catalogue_bytes(self) -> int:
        """All models together."""
        return sum(model.size_bytes for model in self.models)


class Step:
    """One thing the demo does before the burst. ``done`` is what it is called afterwards, ``details`` go below."""

    def __init__(self, doing: str) -> None:
        self.done = doing
        self.details: list[str] = []
        self.began_s = time.monotonic()
        self.spinner: Status | None = None

    def now(self, doing: str) -> None:
        """Tell what it is at, where somebody watches."""
        if self.spinner is not None:
            self.spinner.update(f"{doing}…")


class Screen:
    """Where the demo tells its story: live on a terminal, in plain lines elsewhere."""

    def __init__(self, console: Console | None = None, *, live: bool = True) -> None:
        made = Console(highlight=False) if console is None else console
        # Without a terminal rich assumes 80 columns and would wrap what nobody looks at in 80 columns.
        self.console = made if made.is_terminal else Console(file=made.file, highlight=False, width=WIDTH)
        self.live = live and self.console.is_terminal
        self._picture: Live | None = None
        self._told_parts = 0

    def title(self, text: str, more: str) -> None:
        """The first lines."""
        self.console.print(Text.assemble("\n  ", (text, "bold"), "\n  ", (more, "dim"), "\n"))

    @contextmanager
    def step(self, doing: str) -> Iterator[Step]:
        """Show that something is going on; afterwards a line that says what was done, and how long it took."""
        step = Step(doing)
        if self.live:
            with self.console.status(f"{doing}…", spinner="dots", spinner_style="green") as status:
                step.spinner = status
                yield step
        else:
            yield step
        took = human.span(time.monotonic() - step.began_s)
        self.console.print(Text.assemble("  ", ("✓ ", "green"), step.done.ljust(WIDTH - 14), (took.rjust(8), "dim")))
        for line in step.details:
            self.console.print(Text.assemble("    ", (line, "dim")))

    @contextmanager
    def burst(self) -> Iterator[None]:
        """While the requests run: inside, ``update`` redraws."""
        if not self.live:
            yield
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as self._picture:
            yield
        self._picture = None

    def update(self, scene: Scene) -> None:
        """Draw the burst as it is now."""
        if self._picture is not None:
            self._picture.update(picture(scene), refresh=True)
            return
        part = scene.tally.requests * PLAIN_PARTS // scene.requests
        if not self.live and part > self._told_parts:
            self._told_parts = part
            self.console.print(Text.assemble("    ", progress_line(scene)))

    def show(self, what: RenderableType) -> None:
        """Print something for good."""
        self.console.print(what)

    def line(self, command: str) -> None:
        """Print a command to copy: whole, however wide the screen is."""
        self.console.print(Text(f"  {command}", "green"), soft_wrap=True)


def picture(scene: Scene) -> RenderableType:
    """One moment of the burst: progress, room, and every model with where it is and what its requests cost."""
    return Padding(Group(_progress(scene), Text(), _room(scene), Text(), _catalogue(scene), Text(), _legend()), (1, 2))


def progress_line(scene: Scene) -> str:
    """The burst so far, in words."""
    tally = scene.tally
    rate = tally.requests / scene.elapsed_s if scene.elapsed_s else 0.0
    right = "" if math.isnan(tally.accuracy) else f", {tally.accuracy:.1%} of the images named rightly"
    return f"{tally.requests:,} of {scene.requests:,} requests, {rate:.0f}/s, {tally.failed} errors{right}"


def _progress(scene: Scene) -> RenderableType:
    return Group(
        Text.assemble((progress_line(scene), "bold")),
        _bar(scene.tally.requests / scene.requests, "white", WIDTH - 6),
    )


def _bar(share: float, colour: str, length: int) -> Text:
    filled = min(length, round(share * length))
    return Text.assemble(("━" * filled, colour), ("━" * (length - filled), "bright_black"))


def _room(scene: Scene) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    if scene.residency is None:
        return table
    for tier in reversed(scene.residency.tiers):
        held = sum(any(copy.place == tier.place for copy in model.copies) for model in scene.residency.models)
        used = f"{tier.reserved_bytes / 1e6:.1f} of {human.size(tier.budget_bytes)}"
        bar = _bar(tier.reserved_bytes / tier.budget_bytes, COLOURS[tier.tier], TIER_BAR)
        table.add_row(Text("RAM" if tier.tier == "ram" else tier.tier, COLOURS[tier.tier]), bar, used, f"{held} models")
    whole = f"{human.size(scene.catalogue_bytes)}"
    table.add_row(Text("S3", COLOURS["s3"]), _bar(1.0, COLOURS["s3"], TIER_BAR), whole, f"{len(scene.models)} models")
    return table


def _catalogue(scene: Scene) -> RenderableType:
    """Two halves side by side, a format each: 24 models in 12 lines fit the smallest terminal."""
    reports = {} if scene.residency is None else {report.name: report for report in scene.residency.models}
    busiest = max([1, *(scene.tally.asked(place) for place in range(len(scene.models)))])
    halves = [
        _half(scene, name, [place for place, model in enumerate(scene.models) if model.format == name], (reports, busiest))
        for name in FORMAT_NAMES
    ]
    table = Table.grid(padding=(0, 4, 0, 0))
    table.add_row(*halves)
    return table


def _half(scene: Scene, format_name: str, places: Sequence[int], drawn: tuple[dict[str, ModelReport], int]) -> Table:
    reports, busiest = drawn
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column(FORMAT_NAMES[format_name], min_width=10)
    table.add_column("MB", justify="right")
    table.add_column("requests", min_width=MODEL_BAR)
    for start in STARTS:
        table.add_column(start if start == "hot" else start.upper(), justify="right", header_style=COLOURS[start], min_width=3)
    for place in places:
        model = scene.models[place]
        where = whereabouts(reports.get(model.name))
        counts = [scene.tally.by_model[place, start] for start in STARTS]
        table.add_row(
            Text(DOTS[where], COLOURS[where]),
            Text(model.name.removesuffix(f"-{format_name}"), "" if where == "device" else "dim" if where == "s3" else ""),
            f"{model.size_bytes / 1e6:.1f}",
            _starts_bar(counts, busiest),
            *(str(count) if count else Text("·", "bright_black") for count in counts),
        )
    return table


def _starts_bar(counts: Sequence[int], busiest: int) -> Text:
    """As long as the model was asked often, in the colours of what its requests cost."""
    bar, asked = Text(), sum(counts)
    length = math.ceil(MODEL_BAR * asked / busiest)
    so_far = 0
    for start, count in zip(STARTS, counts, strict=True):
        before, so_far = so_far, so_far + count
        if asked:
            bar.append("━" * (round(length * so_far / asked) - round(length * before / asked)), COLOURS[start])
    return bar


def _legend() -> Text:
    legend = Text()
    for where, dot in DOTS.items():
        legend.append(f"{dot} ", COLOURS[where])
        legend.append(f"{WORDS[where]}    ", "dim")
    return legend


def whereabouts(report: ModelReport | None) -> str:
    """The place nearest to the computation where the model is ready; else ``moving`` if it is on its way, else ``s3``."""
    copies = () if report is None else report.copies
    ready = {copy.tier for copy in copies if copy.state == "ready"}
    return "device" if "device" in ready else "moving" if copies and not ready else "ram" if ready else "s3"


def latencies(tally: Tally) -> Table:
    """What an answer cost, by what the server had to do for it."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("answered")
    for heading in ("requests", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for start in STARTS:
        values = tally.latencies_s[start]
        spans = (human.milliseconds(percentile(values, share)) if values else "-" for share in (0.5, 0.95, 0.99))
        word, meaning = START_WORDS[start]
        table.add_row(Text(word, COLOURS[start]), f"{len(values):,}", *spans, Text(meaning, "dim"))
    return table


def summary(scene: Scene, *, alone: float, clients: int) -> RenderableType:
    """What happened, once it is over.

    alone  accuracy on the same images of the same models when each runs by itself
    """
    tally = scene.tally
    rate = tally.requests / scene.elapsed_s
    lines: list[RenderableType] = [
        Text.assemble(
            (f"{tally.requests:,} requests", "bold"),
            f" from {clients} clients in {human.span(scene.elapsed_s)} ({rate:.0f}/s; "
            f"{tally.binary:,} of them binary, the others JSON), ",
            (f"{tally.failed} errors", "bold" if tally.failed == 0 else "bold red"),
        ),
        Text.assemble(
            (f"{tally.accuracy:.2%} of {tally.images:,} images", "bold"),
            f" named rightly; each model run alone: {alone:.2%}, ",
            ("no answer differs", "bold green") if tally.different == 0 else (f"{tally.different} answers differ", "bold red"),
        ),
        Text(),
        latencies(tally),
        Text(),
    ]
    if scene.residency is not None:
        room = {tier.tier: human.size(tier.budget_bytes) for tier in scene.residency.tiers}
        lines.append(
            Text(
                f"{len(scene.models)} models of {human.size(scene.catalogue_bytes)} shared {room['device']} of device and "
                f"{room['ram']} of RAM: {scene.residency.loads:,} loads,\n"
                f"{scene.drops['device']} evictions from the device, {scene.drops['ram']} from RAM"
            )
        )
    return Padding(Group(*lines), (1, 2))


def digit(pixels: Sequence[float], side: int = 8) -> Text:
    """An image of the test set, in blocks: two columns a pixel make it square."""
    rows = [pixels[first : first + side] for first in range(0, len(pixels), side)]
    shades = len(SHADES) - 1
    return Text("\n".join("    " + "".join(SHADES[round(value / 16 * shades)] * 2 for value in row) for row in rows))
