"""Models of the Hub, downloaded and quantized once (`polyphi pull`, and the first use of a hub id).

>>> folder = pull("microsoft/Phi-4-mini-instruct", quant="int4")     # asks the Hub for a newer commit
>>> folder = find("microsoft/Phi-4-mini-instruct", quant="int4")     # a stored one; pulls only if there is none
"""

import logging
from pathlib import Path

from torch import Tensor

from polyphi.checkpoints import files
from polyphi.checkpoints.headers import (
    files_beside,
    read_config,
    read_layout,
    read_quantization,
    stored_bytes,
)
from polyphi.checkpoints.names import FORMAT, TEXT_LAYOUTS
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import write_checkpoint
from polyphi.hub import cache, download, hashes
from polyphi.hub.download import Progress, silent
from polyphi.hub.location import locate
from polyphi.quantization import quantize
from polyphi.quantization.integer_weights import Pieces
from polyphi.runtime.files import RECORD, remove, whole_folder

log = logging.getLogger(__name__)
FILE_BYTES = 500_000_000
"""Size of the files of a quantized model; each is in memory until it is written."""


def find(source: str | Path, quant: str | None = None, *, progress: Progress = silent) -> Path:
    """The folder of a model to load: as `locate`, but of a hub id with a `quant` that can be stored, that of the
    quantized model. What isn't stored is pulled. Where our cache is read-only the folder is unquantized."""
    name = cache.hub_name(source)
    if name is None:
        return locate(source)
    if quant not in (None, *quantize.SCHEMES):
        raise ValueError(
            f"expected quant to be one of {', '.join(quantize.SCHEMES)}; found {quant!r}"
        )
    repository, revision = name
    commit = cache.commit_of(repository, revision)
    if quant not in quantize.STORED:
        if commit is not None and download.stored(repository, revision) is None:
            _hint_at_quantized(repository)
        folder = download.locate(repository, revision, progress=progress)
        log.info("%s from %s", source, folder)
        return folder
    assert quant is not None
    if commit is not None:
        folder = cache.quantized_folder(repository, commit, quant, FORMAT)
        if files.fault(folder) is None:
            cache.record_use(folder)
            log.info("%s in %s from %s", source, quant, folder)
            return folder
    try:
        if (full := download.stored(repository, revision)) is not None:
            with download.alone(repository):
                return quantized(full, repository, quant, progress=progress)
        return pull(repository, revision, quant, progress=progress)
    except OSError as error:
        full = download.stored(repository, revision)
        if error.errno not in cache.READ_ONLY or full is None:
            raise
        log.warning(
            "%s can't be written to (%s): the model is quantized at every start; set POLYPHI_CACHE to another folder",
            cache.models_folder(),
            error.strerror,
        )
        return full


def stored(source: str | Path, quant: str | None = None) -> Path | None:
    """The folder that `find` returns, or for a `quant` that isn't stored the one that it quantizes; None for a hub id
    that isn't downloaded yet. Raises ValueError as `locate`."""
    name = cache.hub_name(source)
    if name is None:
        return locate(source)
    repository, revision = name
    commit = cache.commit_of(repository, revision)
    if quant in quantize.STORED and commit is not None:
        folder = cache.quantized_folder(repository, commit, str(quant), FORMAT)
        if files.fault(folder) is None:
            return folder
    return download.stored(repository, revision)


def pull(
    repository: str,
    revision: str = cache.MAIN,
    quant: str | None = None,
    *,
    verify: bool = False,
    progress: Progress = silent,
) -> Path:
    """The folder of a revision as the Hub has it now, quantized if requested; what is stored isn't fetched or quantized
    again. With `verify` a quantized model is, if a file differs from its recorded hash. Raises ValueError for an
    unknown `quant`, and errors as `download`."""
    if quant not in (None, *quantize.STORED):
        raise ValueError(
            f"expected quant to be one of {', '.join(quantize.STORED)}; found {quant!r}"
        )
    with download.alone(repository):
        if quant is not None and (commit := download.current_commit(repository, revision)):
            folder = cache.quantized_folder(repository, commit, quant, FORMAT)
            if files.fault(folder) is None and not (verify and _is_damaged(folder, progress)):
                cache.record_commit(repository, revision, commit)
                return folder
        folder = download.download(repository, revision, verify=verify, progress=progress)
        if quant is None:
            return folder
        return quantized(folder, repository, quant, again=verify, progress=progress)


def _is_damaged(folder: Path, progress: Progress) -> bool:
    """Whether a quantized model differs from its hashes, or has none: older versions of polyphi recorded none."""
    try:
        text = hashes.damage(folder, lambda share: progress("verification", share))
    except ValueError as error:
        text = str(error)
    if text:
        log.warning("%s: the model is quantized again", text)
    return text is not None


def quantized(
    folder: Path,
    repository: str,
    scheme: str,
    *,
    again: bool = False,
    progress: Progress = silent,
) -> Path:
    """The quantized model of a download, written if it isn't stored, or `again`, with the hashes of its files. The
    caller holds the repository's lock. Tensors are read, quantized and released one at a time; at most one file of the
    result (FILE_BYTES) is in memory. Raises ValueError for a download that is quantized to another scheme, and OSError
    if the disk is full."""
    if stored := read_quantization(folder):
        if stored != scheme:
            raise ValueError(
                f"{repository} is quantized to {stored} and can't become {scheme}: omit --quant, or name the "
                "repository of the unquantized model"
            )
        return folder
    target = cache.quantized_folder(repository, folder.name, scheme, FORMAT)
    if files.fault(target) is None and not again:
        return target
    for partial in target.parents[1].glob("*/.*.partial*"):  # of processes that were killed
        remove(partial)
    config = read_config(folder)
    saved = quantize.saved_bytes(config, scheme) - quantize.table_bytes(config, scheme)
    needed = max(0, stored_bytes(folder) - saved)
    what = f"the {scheme} model of {repository}"
    download.check_space(target, needed, what, "POLYPHI_CACHE")
    log.info("quantizing %s to %s, once", repository, scheme)
    progress("quantization", 0.0)
    model = load_checkpoint(folder, apart=True)
    config = model.config
    state = dict(model.state_dict())
    del model
    total, written = sum(tensor.nbytes for tensor in state.values()), 0

    def tensor(name: str) -> Tensor | Pieces:
        nonlocal written
        value = state.pop(name)  # unmapped when it is written
        written += value.nbytes
        progress("quantization", min(1.0, written / total))
        return value

    layout = layout if (layout := read_layout(folder)) in TEXT_LAYOUTS else "native"
    try:
        with whole_folder(target) as written_folder:
            write_checkpoint(
                config,
                tensor,
                written_folder,
                layout,
                quant=scheme,
                max_shard_bytes=FILE_BYTES,
                files=files_beside(folder, layout),
            )
            remove(written_folder / RECORD)  # all that lies in the cache is ours
            hashes.record(written_folder)
    except OSError as error:
        if error.errno not in download.DISK_FULL:
            raise
        raise download.disk_full(
            f"the disk of {target.parent} was full while {what} was written: set POLYPHI_CACHE to a folder on a larger "
            "disk"
        ) from error
    return target


def _hint_at_quantized(repository: str) -> None:
    """Log that a quantized model is stored, before its unquantized one is downloaded."""
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        return  # the error says so
    quants = [row.quant for row in cache.entries() if row.repository == repository and row.quant]
    if quants:
        log.info(
            "%s is stored in %s: --quant %s needs no download", repository, quants[0], quants[0]
        )
