"""The machines on which the tasks of a corpus run (`polyphi curate`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.types import PositiveInt


@Parameter(name="*")
@dataclass(frozen=True)
class Machines:
    """The machines on which tasks run: this one, as tasks of Ray on the cluster that RAY_ADDRESS names (or one started
    here), or as jobs that are submitted to Slurm."""

    executor: Literal["local", "ray", "slurm"] = "local"
    """Where tasks run."""
    workers: PositiveInt = 1
    """Parallel tasks."""
    slurm: Annotated[Mapping[str, Any], Parameter(parse=False)] = field(default_factory=dict)
    """sbatch's `partition`, `time` and further options of datatrove's executor."""
