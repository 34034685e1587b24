r"""A split of a corpus as a datatrove pipeline: samples, steps, shards; on this machine, on Ray or on Slurm.

    task      samples            steps                   across all tasks     shards
    train 0   build(0 of 2) ->  language -> held out ->  part 0  \            part 0  \
    train 1   build(1 of 2) ->  language -> held out ->  part 1  -> one of -> part 1  -> data/NAME/train/*.parquet
                                   |                                 each |              and manifest.json
                                what a step drops:  data/NAME/.made/HASH/train/dropped/STEP/00000.jsonl

A task writes its part whole or not at all. A run that was killed leaves finished tasks alone and starts the others
again, so that its shards are the same bit for bit, whoever made them and however often it was stopped.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import multiprocess
from datatrove.data import Document, DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.logging import logger

from polyphi.curate.documents import document, sample
from polyphi.data import shards
from polyphi.data.shards import Sample, Shards

PRELOADED = [f"polyphi.curate.{name}" for name in ("pipeline", "decontaminate", "dedup")]

logger.disable("datatrove")  # it says a dozen lines a task; its own log files go with them


@dataclass(frozen=True)
class Machines:
    """Where tasks run: `executor` "local" (so many processes), "ray" (so many tasks at a time, on the cluster that
    RAY_ADDRESS names, or one started here) or "slurm" (jobs are handed in; `slurm` has sbatch's `partition`, `time`
    and what else datatrove's executor takes)."""

    executor: Literal["local", "ray", "slurm"] = "local"
    workers: int = 1
    slurm: Mapping[str, Any] = field(default_factory=dict)


class Samples(PipelineStep):
    """The first step: each task's samples, as documents."""

    name, type = "Samples", "READER"

    def __init__(
        self, tasks: Sequence[Callable[[], Iterator[Sample]]], split: str = "train"
    ) -> None:
        super().__init__()
        self._tasks, self._split = tasks, split

    def __deepcopy__(self, memo: dict[int, Any]) -> "Samples":
        """The local executor copies its steps for each task; a model that a corpus is made with needs no copy."""
        return Samples(self._tasks, self._split)

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> DocumentsPipeline:
        """Documents of task `rank`."""
        for one in self._tasks[rank]():
            self.stat_update("documents")
            yield document(one, self._split)


class Parts(PipelineStep):
    """The first step of what looks across tasks: the documents of each task's part."""

    name, type = "Parts", "READER"

    def __init__(self, folders: Sequence[Path], split: str = "train") -> None:
        super().__init__()
        self._folders, self._split = folders, split

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> DocumentsPipeline:
        """Documents of part `rank`."""
        for one in Shards(self._folders[rank]):
            self.stat_update("documents")
            yield document(one, self._split)


class Part(PipelineStep):
    """The last step: each task's documents become a part of a split, of at most `rows`."""

    name, type = "Part", "WRITER"

    def __init__(
        self, folders: Sequence[Path], pipeline: str, parents: Sequence[str], rows: int | None
    ) -> None:
        super().__init__()
        self._folders, self._pipeline, self._parents = folders, pipeline, parents
        self._rows = rows

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Write them; nothing comes out."""

        def counted() -> Iterator[Sample]:
            for one in islice(data, self._rows):
                self.stat_update("documents")
                yield sample(one)

        folder = self._folders[rank]
        shards.write(folder, counted(), pipeline=self._pipeline, parents=self._parents)
        yield from ()


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
) -> None:
    """Make the split `folder` by its tasks, each of at most `rows` samples, unless it is there. `pipeline` is the hash
    of all that decides what is made. Each of `across` sees the parts of all tasks at once: `dedup.deduplicate`, told
    what is alike. With Slurm it returns when jobs are handed in (and at once while they wait or run); called again
    after they are done, it joins what they made. Raises ValueError where an executor isn't installed."""
    if _is_made(folder, pipeline):
        return
    made = _made(folder, pipeline)
    if machines.executor == "slurm" and _queued(made):
        return
    rounds = [
        [made / f"parts-{n}" / f"{rank:05d}" for rank in range(len(tasks))]
        for n in range(len(across) + 1)
    ]
    logs = [made, *(made / f"across-{n}" / "logs" / "3" for n in range(len(across)))]
    for parts, completed in zip(rounds, logs, strict=True):
        for rank, part in enumerate(parts):
            if not _is_made(part, pipeline):
                (completed / "completions" / f"{rank:05d}").unlink(missing_ok=True)
    for step in steps:
        if getattr(step, "exclusion_writer", "none") is None:
            step.exclusion_writer = _aside(made / "dropped" / type(step).__name__)
    last = [Part(parts, pipeline, parents, None) for parts in rounds[:-1]]
    last.append(Part(rounds[-1], pipeline, parents, rows))
    execute = partial(_executor, machines, _job(made))
    done = execute(
        pipeline=[Samples(tasks, folder.name), *steps, last[0]],
        tasks=len(tasks),
        logging_dir=str(made),
    )
    done.run()
    for n, one in enumerate(across):
        done = one(
            [Parts(rounds[n], folder.name)],
            [last[n + 1]],
            made / f"across-{n}",
            excluded=_aside(made / "dropped" / f"Duplicates-{n}"),
            tasks=len(tasks),
            executor=execute,
            depends=done,
        )
    if all(_is_made(part, pipeline) for part in rounds[-1]):
        shards.join(folder, rounds[-1])
        for parts in rounds[:-1]:
            shutil.rmtree(parts[0].parent)


def _made(folder: Path, pipeline: str) -> Path:
    """Where the split of a corpus is made by a pipeline."""
    return folder.parent / ".made" / pipeline[:16] / folder.name


def _is_made(folder: Path, pipeline: str) -> bool:
    manifest = folder / "manifest.json"
    return manifest.exists() and json.loads(manifest.read_text())["pipeline"] == pipeline


def _job(made: Path) -> str:
    """What Slurm knows the jobs of a split by: its corpus, the hash of all that decides what is made, and itself."""
    return f"polyphi-{made.parents[2].name}-{made.parent.name}-{made.name}"


def _queued(made: Path) -> bool:
    """Whether jobs that were handed in before wait or run."""
    if shutil.which("squeue") is None:
        return False
    command = ["squeue", "--noheader", "--name", _job(made), "--format", "%r"]
    told = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    # What waits for jobs that failed waits for ever.
    return any(reason != "DependencyNeverSatisfied" for reason in told.split())


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

            if lacking := {"partition", "time"} - set(machines.slurm):
                raise ValueError(
                    f"Slurm wants to know {' and '.join(sorted(lacking))}: --slurm partition=NAME --slurm time=04:00:00"
                )
            # Jobs use the Python that hands them in.
            activate = f'export PATH="{Path(sys.executable).parent}:$PATH"'
            options = {"job_name": job, "env_command": activate, **machines.slurm}
            return SlurmPipelineExecutor(**common, **options)
    except ImportError as error:
        raise ValueError(
            f"the executor {machines.executor!r} isn't installed ({error}); `pip install ray` brings it"
        ) from error
    # Workers of all steps are forked from one process that has imported what they need: else each does, for seconds.
    multiprocess.get_context("forkserver").set_forkserver_preload(PRELOADED)
    return LocalPipelineExecutor(**common)


def _aside(folder: Path) -> JsonlWriter:
    """Where a step's dropped documents are kept, with the reason."""

    def line(self: JsonlWriter, dropped: Document) -> dict[str, Any]:
        kept = dropped.metadata["sample"]
        return {
            "id": dropped.id,
            "reason": dropped.metadata.get("filter_reason", ""),
            "text": dropped.text,
            "source": kept["source"],
            "licence": kept["licence"],
            "media_sha256": [m.id for m in dropped.media],
            "lineage": dropped.metadata["lineage"],
        }

    return JsonlWriter(str(folder), "${rank}.jsonl", compression=None, adapter=line)


def counts(folder: Path, pipeline: str) -> list[dict[str, Any]]:
    """What each step counted in all tasks of a split: documents that came, went on ("forwarded"), were dropped, and
    for which reason; empty where the corpus was made elsewhere."""
    made = _made(folder, pipeline)
    found, n = _counted(made / "stats"), 0
    while across := _counted(made / f"across-{n}" / "logs" / "3" / "stats"):
        # Of reading parts, dropping, telling and writing. What the last part has counts, not the one before.
        dropped = next(step for step in across if "total" in step)
        found[-1:] = [dropped | {"step": f"Duplicates-{n}"}, across[-1]]
        n += 1
    return found


def _counted(folder: Path) -> list[dict[str, Any]]:
    found: list[Counter[str]] = []
    names: list[str] = []
    for path in sorted(folder.glob("*.json")):
        steps = json.loads(path.read_text())
        names = [step["name"].split(": ")[-1] for step in steps]
        found = found or [Counter() for _ in steps]
        for counter, step in zip(found, steps, strict=True):
            for key, value in step["stats"].items():
                if key in ("documents", "total", "forwarded") or key.startswith("dropped"):
                    counter[key] += value["total"] if isinstance(value, dict) else value
    return [{"step": name, **counter} for name, counter in zip(names, found, strict=True)]
