"""A corpus as a datatrove pipeline: samples, steps, shards; on this machine, on Ray or on Slurm.

    task          samples                 steps                     shards
    train 0  ->   build(train, 0 of 2) -> language -> quality  ->   part 0  \
    train 1  ->   build(train, 1 of 2) -> language -> quality  ->   part 1  -> data/NAME/train/*.parquet + manifest.json
    test  0  ->   build(test)          -> language -> quality  ->   part 0  -> data/NAME/test/*.parquet + manifest.json
                                          what a step drops    ->   data/NAME/.made/HASH/dropped/STEP/00000.jsonl

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
from pathlib import Path
from typing import Any, Literal

from datatrove.data import Document, DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.logging import logger

from polyphi.curate.documents import document, sample
from polyphi.data import shards
from polyphi.data.shards import Sample

logger.disable("datatrove")  # it says a dozen lines a task; its own log files go with them


@dataclass(frozen=True)
class Machines:
    """Where tasks run: `executor` "local" (so many processes), "ray" (so many tasks at a time, on the cluster that
    RAY_ADDRESS names, or one started here) or "slurm" (jobs are handed in; `slurm` has sbatch's `partition` and `time`,
    and what else datatrove's executor takes)."""

    executor: Literal["local", "ray", "slurm"] = "local"
    workers: int = 1
    slurm: Mapping[str, Any] = field(default_factory=dict)


class Samples(PipelineStep):
    """The first step: each task's samples, as documents; `metadata["split"]` is the split that a task fills."""

    name, type = "Samples", "READER"

    def __init__(self, tasks: Sequence[tuple[str, Callable[[], Iterator[Sample]]]]) -> None:
        super().__init__()
        self._tasks = tasks

    def __deepcopy__(self, memo: dict[int, Any]) -> "Samples":
        """The local executor copies its steps for each task; a model that a corpus is made with needs no copy."""
        return Samples(self._tasks)

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> DocumentsPipeline:
        """Documents of task `rank`."""
        split, task = self._tasks[rank]
        for one in task():
            self.stat_update("documents")
            yield document(one, split)


class Part(PipelineStep):
    """The last step: each task's documents become a part of a split."""

    name, type = "Part", "WRITER"

    def __init__(self, folders: Sequence[Path], pipeline: str, parents: Sequence[str]) -> None:
        super().__init__()
        self._folders, self._pipeline, self._parents = folders, pipeline, parents

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Write them; nothing comes out."""

        def counted() -> Iterator[Sample]:
            for one in data:
                self.stat_update("documents")
                yield sample(one)

        folder = self._folders[rank]
        shards.write(folder, counted(), pipeline=self._pipeline, parents=self._parents)
        yield from ()


def run(
    folder: Path,
    splits: Mapping[str, Sequence[Callable[[], Iterator[Sample]]]],
    steps: Sequence[PipelineStep],
    machines: Machines,
    *,
    pipeline: str,
    parents: Sequence[str] = (),
) -> None:
    """Make splits in `folder`, each by its tasks, but for those that are there. `pipeline` is the hash of all that
    decides what is made. With Slurm it returns when jobs are handed in (and at once while they wait or run);
    called again after they are done, it joins what they made. Raises ValueError where an executor isn't installed."""
    made = folder / ".made" / pipeline[:16]
    places = [
        (s, made / "parts" / s / f"{n:05d}") for s, ts in splits.items() for n in range(len(ts))
    ]
    for rank, (split, part) in enumerate(places):
        if not (_is_made(folder / split, pipeline) or _is_made(part, pipeline)):
            (made / "completions" / f"{rank:05d}").unlink(missing_ok=True)
    for step in steps:
        if getattr(step, "exclusion_writer", "none") is None:
            step.exclusion_writer = _aside(made / "dropped" / type(step).__name__)
    if machines.executor == "slurm" and _queued(made):
        return
    tasks = [(split, task) for split, each in splits.items() for task in each]
    last = Part([part for _, part in places], pipeline, parents)
    _executor(machines, [Samples(tasks), *steps, last], len(tasks), made).run()
    for split in splits:
        parts = [part for s, part in places if s == split]
        if not _is_made(folder / split, pipeline) and all(_is_made(p, pipeline) for p in parts):
            shards.join(folder / split, parts)


def _is_made(folder: Path, pipeline: str) -> bool:
    manifest = folder / "manifest.json"
    return manifest.exists() and json.loads(manifest.read_text())["pipeline"] == pipeline


def _job(made: Path) -> str:
    """What Slurm knows a pipeline's jobs by: its corpus, and the hash of all that decides what is made."""
    return f"polyphi-{made.parents[1].name}-{made.name}"


def _queued(made: Path) -> bool:
    """Whether jobs that were handed in before wait or run."""
    if shutil.which("squeue") is None:
        return False
    command = ["squeue", "--noheader", "--name", _job(made), "--format", "%r"]
    told = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    # What waits for jobs that failed waits for ever.
    return any(reason != "DependencyNeverSatisfied" for reason in told.split())


def _executor(machines: Machines, steps: list[PipelineStep], tasks: int, made: Path) -> Any:
    common = {"pipeline": steps, "tasks": tasks, "logging_dir": str(made)}
    try:
        if machines.executor == "ray":
            import ray
            from datatrove.executor import RayPipelineExecutor

            ray.init(ignore_reinit_error=True, log_to_driver=False)
            return RayPipelineExecutor(**common, workers=machines.workers)
        if machines.executor == "slurm":
            from datatrove.executor import SlurmPipelineExecutor

            if lacking := {"partition", "time"} - set(machines.slurm):
                raise ValueError(
                    f"Slurm wants to know {' and '.join(sorted(lacking))}: --slurm partition=NAME --slurm time=04:00:00"
                )
            # Jobs use the Python that hands them in.
            activate = f'export PATH="{Path(sys.executable).parent}:$PATH"'
            options = {"job_name": _job(made), "env_command": activate, **machines.slurm}
            return SlurmPipelineExecutor(**common, workers=machines.workers, **options)
    except ImportError as error:
        raise ValueError(
            f"the executor {machines.executor!r} isn't installed ({error}); `pip install ray` brings it"
        ) from error
    return LocalPipelineExecutor(**common, workers=machines.workers)


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
    """What each step counted in all tasks: documents that came, went on ("forwarded"), were dropped, and for which
    reason; empty where the corpus was made elsewhere."""
    found: list[Counter[str]] = []
    names: list[str] = []
    for path in sorted((folder / ".made" / pipeline[:16] / "stats").glob("*.json")):
        steps = json.loads(path.read_text())
        names = [step["name"].split(": ")[-1] for step in steps]
        found = found or [Counter() for _ in steps]
        for counter, step in zip(found, steps, strict=True):
            for key, value in step["stats"].items():
                if key in ("documents", "total", "forwarded") or key.startswith("dropped"):
                    counter[key] += value["total"] if isinstance(value, dict) else value
    return [{"step": name, **counter} for name, counter in zip(names, found, strict=True)]
