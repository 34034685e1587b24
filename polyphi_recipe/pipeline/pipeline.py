r"""A split of a corpus as a datatrove pipeline: samples, steps, shards; on this machine, on Ray or on Slurm.

    task      samples            steps                   across all tasks     shards
    train 0   build(0 of 2) ->  language -> held out ->  part 0  \            part 0  \
    train 1   build(1 of 2) ->  language -> held out ->  part 1  -> one of -> part 1  -> data/NAME/train/*.parquet
                                   |                                 each |              and manifest.json
                                what a step drops:  data/NAME/.made/HASH/train/dropped/STEP/00000.jsonl

A task writes its part atomically. A run that was killed keeps finished tasks and restarts the others, so that its
shards are the same bit for bit, whatever the executor and however often it was interrupted. What each task read from
input files is in `.made/HASH/train/inputs`; if one of them changes, the split is built anew.
"""

import json
import shutil
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import multiprocess
from datatrove.data import Document, DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.logging import logger

from polyphi.data import shards
from polyphi.data.shards import Sample, Shards
from polyphi.runtime import inputs
from polyphi.runtime.files import locked, remove, remove_leftovers, write_whole
from polyphi.runtime.inputs import Inputs
from polyphi_recipe.pipeline.documents import document, sample
from polyphi_recipe.pipeline.machines import Machines

READ = "read "
"""Prefix, before the name of a source, of the number of its samples, which the first step counts."""
BUILDER = "run"
"""The file of a build folder with the name of the run that built it (`_run_id`)."""
COUNTED = ("documents", "total", "forwarded")
"""Numbers of a step that are summed over its tasks, with those of what it dropped by reason, and those of syntheses
(synthesis_step.py)."""
PRELOADED = [
    *(f"polyphi_recipe.pipeline.{name}" for name in ("children", "pipeline")),
    *(f"polyphi_recipe.dedup.{name}" for name in ("decontaminate", "dedup")),
]
"""Modules of the process from which those of datatrove are forked; with one worker only the first."""

logger.disable("datatrove")  # a dozen lines per task, and its log files, too


class Samples(PipelineStep):
    """The first step: reads each task's samples as documents."""

    name, type = "Samples", "READER"

    def __init__(
        self, tasks: Sequence[Callable[[], Iterator[Sample]]], split: str = "train"
    ) -> None:
        super().__init__()
        self._tasks, self._split = tasks, split

    def __deepcopy__(self, memo: dict[int, Any]) -> "Samples":
        """Return an uncopied step: the local executor copies its steps for each task, and models need no copy."""
        return Samples(self._tasks, self._split)

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> DocumentsPipeline:
        """Yield the documents of task `rank`."""
        inputs.start()  # `WriteSplitPart` saves what is read in between
        for across_step in self._tasks[rank]():
            self.stat_update("documents", f"{READ}{across_step.source}")
            yield document(across_step, self._split)


class Parts(PipelineStep):
    """The first step of a pass across tasks: reads the documents of each task's part."""

    name, type = "Parts", "READER"

    def __init__(self, folders: Sequence[Path], split: str = "train") -> None:
        super().__init__()
        self._folders, self._split = folders, split

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> DocumentsPipeline:
        """Yield the documents of part `rank`."""
        for across_step in Shards(self._folders[rank]):
            self.stat_update("documents")
            yield document(across_step, self._split)


class WriteSplitPart(PipelineStep):
    """The last step: writes each task's documents as a part of a split, of at most `rows`; and before the part is
    whole, the input files of the task to `read`, where given."""

    name, type = "Part", "WRITER"

    def __init__(
        self,
        folders: Sequence[Path],
        pipeline: str,
        parents: Sequence[str],
        rows: int | None,
        read: Path | None = None,
    ) -> None:
        super().__init__()
        self._folders, self._pipeline, self._parents = folders, pipeline, parents
        self._rows, self._read = rows, read

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Write the documents; yields nothing."""

        def counted() -> Iterator[Sample]:
            for across_step in islice(data, self._rows):
                self.stat_update("documents")
                yield sample(across_step)
            if self._read is not None:
                inputs.stop().save(self._read / f"{rank:05d}.jsonl")

        folder = self._folders[rank]
        shards.write(folder, counted(), pipeline=self._pipeline, parents=self._parents)
        yield from ()


@contextmanager
def _no_children_left() -> Iterator[None]:
    """End datatrove's processes at an error: an interrupt while its server of queues starts leaves that running, and
    this process would wait for it at its exit."""
    try:
        yield
    except BaseException:
        for child in multiprocess.active_children():
            child.kill()
            child.join()
        raise


@_no_children_left()
def run(
    folder: Path,
    tasks: Sequence[Callable[[], Iterator[Sample]]],
    steps: Sequence[PipelineStep],
    machines: Machines,
    *,
    pipeline: str,
    parents: Sequence[str] = (),
    rows: int | None = None,
    across: Sequence[Callable[..., Any]] = (),
    read: Inputs = Inputs(),  # noqa: B008 - not changed
) -> bool:
    """Build the split `folder` by its tasks, each of at most `rows` samples; returns False if it exists. `pipeline` is
    the hash of all that decides the result but input files. Each step of `across` processes the parts of all tasks:
    `dedup.deduplicate` with its `Similarity` bound. `read` are input files that the caller read for all tasks. With
    Slurm, returns when jobs are submitted (and at once while they wait or run); when called after they have ended,
    joins their parts. Raises ValueError if an executor isn't installed."""
    build_folder = _build_folder(folder, pipeline)
    if is_built(folder, pipeline):
        remove_leftovers(folder)
        return False
    if machines.executor == "slurm" and _queued(build_folder):
        return True
    changed = input_change(folder, pipeline)
    read.save(build_folder / "inputs" / "all.jsonl")
    if changed:
        _start_over(build_folder)
    write_whole(build_folder / BUILDER, _run_id(folder))
    rounds = [
        [build_folder / f"parts-{n}" / f"{rank:05d}" for rank in range(len(tasks))]
        for n in range(len(across) + 1)
    ]
    logs = [
        build_folder,
        *(build_folder / f"across-{n}" / "logs" / "3" for n in range(len(across))),
    ]
    for parts, completed in zip(rounds, logs, strict=True):
        for rank, part in enumerate(parts):
            if not _is_written(part, pipeline):
                remove(completed / "completions" / f"{rank:05d}")
    for name, step in zip(_step_names(step.name for step in steps), steps, strict=True):
        if getattr(step, "exclusion_writer", "none") is None:
            step.exclusion_writer = _dropped_writer(_dropped_folder(build_folder, name))
    last = [
        WriteSplitPart(
            parts,
            pipeline,
            parents,
            rows if parts is rounds[-1] else None,
            build_folder / "inputs" if parts is rounds[0] else None,
        )
        for parts in rounds
    ]
    execute = partial(_executor, machines, _job(build_folder))
    previous = execute(
        pipeline=[Samples(tasks, folder.name), *steps, last[0]],
        tasks=len(tasks),
        logging_dir=str(build_folder),
    )
    previous.run()
    for n, across_step in enumerate(across):
        previous = across_step(
            [Parts(rounds[n], folder.name)],
            [last[n + 1]],
            build_folder / f"across-{n}",
            excluded=_dropped_writer(_dropped_folder(build_folder, f"Duplicates-{n}")),
            tasks=len(tasks),
            executor=execute,
            depends=previous,
        )
    if all(_is_written(part, pipeline) for part in rounds[-1]):
        steps_counted = counts(folder, pipeline)
        history = {
            "read": steps_counted[0].get("documents", 0) if steps_counted else 0,
            "dropped": _dropped_by_step(steps_counted),
            "sources_read": {
                key.removeprefix(READ): n
                for step in steps_counted[:1]
                for key, n in sorted(step.items())
                if key.startswith(READ)
            },
            "sources_dropped": _dropped_by_source(folder, pipeline),
            "inputs": inputs.digest(build_folder / "inputs"),
        }
        shards.join(folder, rounds[-1], history)
        for parts in rounds[:-1]:
            remove(parts[0].parent)
    return True


def _build_folder(folder: Path, pipeline: str) -> Path:
    """Return the folder in which a pipeline builds a split."""
    return folder.parent / ".made" / pipeline[:16] / folder.name


def across_folder(folder: Path, number: int) -> Path | None:
    """Return the folder of a step across the tasks of a split, None for an absent split."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return None
    return _build_folder(folder, json.loads(manifest.read_text())["pipeline"]) / f"across-{number}"


def _start_over(build_folder: Path) -> None:
    """Remove what was built from other input files. Their states go last: until then they differ from the files, and
    from then on those of tasks are missing, so that a kill in between can't leave an old split that seems to be new."""
    for path in build_folder.iterdir():
        if path.name != "inputs":
            remove(path)
    for path in (build_folder / "inputs").glob("*.jsonl"):
        if path.name != "all.jsonl":
            remove(path)


def is_built(folder: Path, pipeline: str) -> bool:
    """Return whether a split exists, was built by this pipeline, and its input files are unchanged. Those of a split
    that was built elsewhere are not known."""
    if not _is_written(folder, pipeline):
        return False
    read = _build_folder(folder, pipeline) / "inputs"
    if not read.exists():
        return True
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest.get("inputs") == inputs.digest(read) and not inputs.change(read)


def check_own(folder: Path, pipeline: str) -> None:
    """Raise ValueError for a split that another pipeline wrote, unless it was built by this run: somebody's own data is
    never replaced, and neither is a copy from another run."""
    manifest = folder / "manifest.json"
    if not manifest.exists() or _is_written(folder, pipeline):
        return
    values = json.loads(manifest.read_text())
    build_folder = _build_folder(folder, values["pipeline"])
    builder = build_folder / BUILDER
    of_another_run = builder.exists() and builder.read_text() != _run_id(folder)
    if of_another_run or not build_folder.exists():
        raise ValueError(
            f"{folder} has {values['rows']:,} rows that this run didn't build, and would be replaced; to train on "
            f"them, move the folder and name it in a recipe file (corpora.{folder.parent.name}.sources), else remove it"
        )


def _run_id(folder: Path) -> str:
    """The random name of the run that a split is part of, DIR/data/CORPUS/SPLIT: a copy of DIR/data has the same one,
    that of a corpus in another run has another."""
    path = folder.parents[1] / ".run"
    with locked(path.with_name(".run.lock")):
        if not path.exists():
            write_whole(path, uuid.uuid4().hex)
    return path.read_text()


def input_change(folder: Path, pipeline: str) -> str:
    """Return in words which input file of a split, also of one half built, has changed since; "" for none."""
    return inputs.change(_build_folder(folder, pipeline) / "inputs")


def _is_written(folder: Path, pipeline: str) -> bool:
    manifest = folder / "manifest.json"
    return manifest.exists() and json.loads(manifest.read_text())["pipeline"] == pipeline


def _job(build_folder: Path) -> str:
    """Return the Slurm job name of a split: its corpus, the pipeline's hash and the split's name."""
    return f"polyphi-{build_folder.parents[2].name}-{build_folder.parent.name}-{build_folder.name}"


def _queued(build_folder: Path) -> bool:
    """Return whether jobs submitted before are waiting or running."""
    if shutil.which("squeue") is None:
        return False
    command = ["squeue", "--noheader", "--name", _job(build_folder), "--format", "%r"]
    output = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    # Jobs that depend on failed jobs never start.
    return any(reason != "DependencyNeverSatisfied" for reason in output.split())


def _executor(machines: Machines, job: str, **common: Any) -> Any:
    common["workers"] = machines.workers
    try:
        if machines.executor == "ray":
            import ray
            from datatrove.executor import RayPipelineExecutor

            ray.init(ignore_reinit_error=True, log_to_driver=False)
            return RayPipelineExecutor(**common)
        if machines.executor == "slurm":
            from datatrove.executor import SlurmPipelineExecutor

            if missing := {"partition", "time"} - set(machines.slurm):
                raise ValueError(
                    f"Slurm needs {' and '.join(sorted(missing))}: --slurm partition=NAME --slurm time=04:00:00"
                )
            if shutil.which("sbatch") is None:
                raise ValueError(
                    "expected Slurm's sbatch on the PATH, found none; run this where jobs are submitted"
                )
            # Jobs run the Python that submits them.
            activate = f'export PATH="{Path(sys.executable).parent}:$PATH"'
            options = {"job_name": job, "env_command": activate, **machines.slurm}
            return SlurmPipelineExecutor(**common, **options)
    except ImportError as error:
        raise ValueError(
            f"the executor {machines.executor!r} isn't installed ({error}); install it with `pip install ray`"
        ) from error
    # Workers of all steps are forked from one process with these imports, which take seconds per process; so is the
    # manager of their queues, which would keep a copy of this process's memory.
    multiprocess.set_start_method("forkserver", force=True)
    preloaded = PRELOADED if machines.workers > 1 else PRELOADED[:1]
    multiprocess.get_context("forkserver").set_forkserver_preload(preloaded)
    return LocalPipelineExecutor(**common)


def _dropped_writer(folder: Path) -> JsonlWriter:
    """Return a writer of a step's dropped documents, with the reason of each."""

    def line(self: JsonlWriter, dropped: Document) -> dict[str, Any]:
        row = dropped.metadata["sample"]
        return {
            "id": dropped.id,
            "reason": dropped.metadata.get("filter_reason", ""),
            "text": dropped.text,
            "source": row["source"],
            "licence": row["licence"],
            "media_sha256": [m.id for m in dropped.media],
            "lineage": dropped.metadata["lineage"],
        }

    return JsonlWriter(str(folder), "${rank}.jsonl", compression=None, adapter=line)


def _dropped_folder(build_folder: Path, step: str) -> Path:
    return build_folder / "dropped" / step.replace("/", "-")


def dropped(folder: Path, pipeline: str, step: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the documents of a split that a step dropped, by default all steps: `step`, `id`, `reason`, `text` and
    more."""
    build_folder = _build_folder(folder, pipeline)
    every = sorted((build_folder / "dropped").glob("*"))
    for part in every if step is None else [_dropped_folder(build_folder, step)]:
        for path in sorted(part.glob("*.jsonl")):
            with path.open(encoding="utf-8") as lines:
                yield from ({"step": part.name, **json.loads(line)} for line in lines)


def _step_names(names: Iterable[str]) -> list[str]:
    """Return the names of steps, numbered where they repeat: "Decontamination", "Decontamination 2"."""
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        name = name.split(": ")[-1]  # of "🔻 - FILTER: Decontamination", as datatrove writes it
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return unique


def counts(folder: Path, pipeline: str) -> list[dict[str, Any]]:
    """Return the counts of each step over all tasks of a split: documents in, out ("forwarded") and dropped by reason;
    empty if the corpus was built elsewhere."""
    build_folder = _build_folder(folder, pipeline)
    totals, n = _counted(build_folder / "stats"), 0
    while across := _counted(build_folder / f"across-{n}" / "logs" / "3" / "stats"):
        # The steps are reading, dropping, lineage and writing. The counts of the last writer replace the one before.
        dropped = next((step for step in across if "total" in step), {})  # none without rows
        totals[-1:] = [dropped | {"step": f"Duplicates-{n}"}, across[-1]]
        n += 1
    return totals


def _dropped_by_step(steps: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how many documents each of the steps of `counts` dropped; those that dropped none are absent."""

    def dropped(step: dict[str, Any]) -> int:
        reasons = sum(n for key, n in step.items() if key.startswith("dropped_"))
        return int(step.get("dropped", reasons))

    return {step["step"]: n for step in steps if (n := dropped(step))}


def _dropped_by_source(folder: Path, pipeline: str) -> dict[str, dict[str, int]]:
    """Return how many documents of each source each step dropped."""
    numbers: dict[str, Counter[str]] = {}
    for row in dropped(folder, pipeline):
        numbers.setdefault(row["source"], Counter())[row["step"]] += 1
    return {source: dict(numbers[source]) for source in sorted(numbers)}


def _counted(folder: Path) -> list[dict[str, Any]]:
    counters: list[Counter[str]] = []
    names: list[str] = []
    for path in sorted(folder.glob("*.json")):
        steps = json.loads(path.read_text())
        names = _step_names(step["name"] for step in steps)
        counters = counters or [Counter() for _ in steps]
        for counter, step in zip(counters, steps, strict=True):
            for key, value in step["stats"].items():
                if key in COUNTED or key.startswith(("dropped", "synthesis ", READ)):
                    counter[key] += value["total"] if isinstance(value, dict) else value
    return [{"step": name, **counter} for name, counter in zip(names, counters, strict=True)]
