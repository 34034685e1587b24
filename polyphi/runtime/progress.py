"""The reports of a run: `metrics.jsonl`, a progress bar on a terminal, a loss plot at the end."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from polyphi.runtime.files import append, sync, write_whole
from polyphi.runtime.plots import subplots

Tracker = Callable[[int, Mapping[str, Any]], None]
"""Function that is called with the number of a step and its record."""
TRACKERS = ("tensorboard", "trackio", "wandb")
SECONDS_BETWEEN_LINES = 20.0
"""Seconds between progress lines without a terminal."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a metrics file, without an incomplete last line (of a killed run)."""
    records = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


class Metrics:
    """Appends records to `metrics.jsonl`, after dropping those of step `until` and later: a resumed run writes them
    again."""

    def __init__(self, path: Path, until: int = 0) -> None:
        records = [r for r in read_metrics(path) if r["step"] < until]
        write_whole(path, "".join(json.dumps(r) + "\n" for r in records))
        self._path = path

    def write(self, record: dict[str, Any]) -> None:
        append(self._path, json.dumps(record).encode() + b"\n", durable=False)

    def sync(self) -> None:
        """Flush the records to the disk, before a checkpoint that relies on them."""
        sync(self._path)


def tracker(name: str, folder: Path, title: str) -> Tracker:
    """A tracker that sends records to "tensorboard" (files in `folder`), "trackio" or "wandb" (a run called `title`).
    Raises ValueError for an unknown tracker or one that isn't installed."""
    if name not in TRACKERS:
        raise ValueError(f"unknown tracker {name!r}; expected one of {', '.join(TRACKERS)}")
    try:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder))

            def write(step: int, record: Mapping[str, Any]) -> None:
                for key, value in _numbers(record).items():
                    writer.add_scalar(key, value, step)
                writer.flush()

            return write
        if name == "trackio":
            import trackio as run
        else:
            import wandb as run
        run.init(project="polyphi", name=title)
        return lambda step, record: run.log(_numbers(record), step=step)
    except ImportError as error:
        raise ValueError(
            f"{name} isn't installed ({error}); install it with `pip install {name}`"
        ) from error


def _numbers(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a record, with nested names joined by slashes."""
    numbers: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            numbers |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            numbers[f"{prefix}{key}"] = float(value)
    return numbers


Item = TypeVar("Item")


class Advance(Protocol):
    """Shows that `step` is done. With `part`, a name and a total, `step` counts what is done of a part of the work
    between two steps, such as the packs of an evaluation."""

    def __call__(self, step: int, text: str, part: tuple[str, int] | None = None) -> None: ...


def counted(items: Iterable[Item], total: int, advance: Advance, name: str) -> Iterator[Item]:
    """Yield items of a part of the work, `total` in number, and show each when it is done."""
    for number, item in enumerate(items, 1):
        yield item
        advance(number, "", (name, total))


@contextmanager
def progress(name: str, total: int | None, done: int = 0, quiet: bool = False) -> Iterator[Advance]:
    """Yields `advance`: a bar on a terminal, and a second one below it for a part of the work; otherwise a line every
    20 s; no output if `quiet`. `total` is None where it isn't known."""
    if quiet:
        yield lambda step, text, part=None: None
        return
    if not sys.stdout.isatty():
        last = time.monotonic()

        def line(step: int, text: str, part: tuple[str, int] | None = None) -> None:
            nonlocal last
            if time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                title, of = (name, total) if part is None else (f"{name} {part[0]}", part[1])
                print(f"  {title} {step}{'' if of is None else f'/{of}'} {text}", flush=True)

        yield line
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(), transient=True) as bar:
        task = bar.add_task(name, total=total, completed=done, text="")
        part_task = bar.add_task("", total=None, text="", visible=False)

        def update(step: int, text: str, part: tuple[str, int] | None = None) -> None:
            if part is None:
                bar.update(task, completed=step, text=text)
            else:
                bar.update(part_task, description=f"  {part[0]}", total=part[1], completed=step)
            bar.update(part_task, visible=part is not None and step < part[1])

        yield update


class Clock:
    """The remaining time of work from step `done` on of `total` steps, as measured: once, when steps have taken 20
    seconds. Data, evaluations and checkpoints between the steps count."""

    def __init__(self, done: int, total: int) -> None:
        self._first, self._total, self._start = done, total, time.monotonic()
        self._reported = False

    def remaining(self, step: int) -> str:
        """A line of text after `step` steps, empty where none is due."""
        seconds, steps = time.monotonic() - self._start, step - self._first
        if self._reported or seconds < SECONDS_BETWEEN_LINES or steps < 1:
            return ""
        self._reported = True
        left = seconds / steps * (self._total - step)
        return f"  {seconds / steps:.3g} s a step, measured: about {duration(left)} to go"


def duration(seconds: float) -> str:
    """A time in words, with two digits: 45 s, 12 min, 3.5 h, 2.4 days."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size * (2 if unit == "days" else 1):
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{max(1, round(seconds))} s"


def plot_loss(records: list[dict[str, Any]], path: Path, title: str) -> None:
    """Loss against step, raw and smoothed, as a PNG."""
    steps, losses = [r["step"] for r in records], [r["loss"] for r in records]
    smooth, value = [], None
    for loss in losses:
        value = loss if value is None else 0.9 * value + 0.1 * loss
        smooth.append(value)
    with subplots(path, size=(6, 3.2), dpi=110) as (_, (axes,)):
        axes.plot(steps, losses, color="#b9c3d6", linewidth=1)
        axes.plot(steps, smooth, color="#2f5fb3", linewidth=1.8)
        axes.set(title=title, xlabel="step", ylabel="loss")
