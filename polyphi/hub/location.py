"""Where a checkpoint is: a folder, the installed model `nano`, or the Hub. This module imports no torch.

>>> locate("runs/nano")                            # a run's folder has its checkpoint in `model`
PosixPath('runs/nano/model')
"""

from pathlib import Path

from polyphi.checkpoints import files
from polyphi.hub import box, cache, download
from polyphi.runtime.files import restore


def locate(source: str | Path) -> Path:
    """The local folder of a checkpoint; for a run's folder that of its `model`. What is no local folder: `nano` is the
    model in the package polyphi-nano; `owner/name` or `owner/name@revision` (or `hf:owner/name`) is downloaded from the
    hub, once."""
    location = _local_or_hub(source)
    return location if isinstance(location, Path) else download.locate(*location)


def check_exists(source: str | Path) -> None:
    """Raise ValueError for a checkpoint that isn't there or lacks files. Only headers are read. The Hub is asked about
    a model that was never downloaded, unless there is no connection."""
    location = _local_or_hub(source)
    if not isinstance(location, Path):
        if cache.commit_of(*location) is None:
            download.current_commit(*location)
    elif fault := files.fault(location):
        raise ValueError(f"{fault}; expected a checkpoint folder with config.json and safetensors")


def _local_or_hub(source: str | Path) -> Path | tuple[str, str]:
    """The folder of a checkpoint on this machine, or else a repository of the Hub and its revision."""
    folder = Path(source).expanduser()
    restore(folder)
    if folder.is_dir():
        inner = folder / "model"
        restore(inner)
        is_run = (inner / "config.json").is_file() and not (folder / "config.json").exists()
        return inner if is_run else folder
    if folder.suffix == ".gguf":
        raise ValueError(
            f"{source} is a GGUF file; convert it to a checkpoint: polyphi export {source} --out FOLDER"
        )
    if str(source) == box.NAME:
        return box.locate()
    hub_name = cache.hub_name(source)
    if hub_name is None:
        raise ValueError(
            f"expected a checkpoint folder or a hub id owner/name, found no folder at {source}; check the path, and "
            "in a container mount the folder there"
        )
    return hub_name
