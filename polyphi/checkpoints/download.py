"""Downloads from the Hub: only the files that a model needs, resumable, and verified before they count as complete.

>>> folder = download("microsoft/Phi-4-mini-instruct")   # asks the Hub; what is there already isn't fetched again
>>> folder = stored("microsoft/Phi-4-mini-instruct")     # of the last download, without a connection; None if none is

The files lie in huggingface_hub's cache, where other programs find them too. Weights are fetched by huggingface_hub's
`http_get` into a partial file that we keep: `snapshot_download` deletes its own when it is interrupted (version 2), and
then a shard of 5 GB would begin again. The rest is `snapshot_download`. This module imports no torch.
"""

import errno
import hashlib
import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING, Any

from polyphi.checkpoints import cache, files
from polyphi.runtime.files import size_text

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

log = logging.getLogger(__name__)
TEXTS = (".json", ".txt", ".jinja")
CONNECTIONS = 4
"""Files that are fetched at the same time."""
ATTEMPTS = 3
"""Connections for a file in one command, each with the retries of huggingface_hub. The next command resumes."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
Progress = Callable[[str, float | None], None]


def silent(stage: str, share: float | None) -> None:
    """Report no progress."""


def stored(repository: str, revision: str = cache.MAIN) -> Path | None:
    """The folder of a revision that was downloaded and verified, if it is still complete."""
    commit = cache.commit_of(repository, revision)
    folder = None if commit is None else _snapshot(repository, commit)
    return folder if folder is not None and files.fault(folder) is None else None


def locate(repository: str, revision: str = cache.MAIN, *, progress: Progress = silent) -> Path:
    """The folder of a revision: as `stored`, or else as `download`, under the repository's lock."""
    if folder := stored(repository, revision):
        return folder
    with alone(repository):
        return stored(repository, revision) or download(repository, revision, progress=progress)


def alone(repository: str) -> AbstractContextManager[Any]:
    """The lock of a repository, after another process released it; none where our cache is read-only."""
    try:
        with cache.lock(repository, wait=False) as free:
            if not free:
                log.info("waiting for another process that downloads or quantizes %s", repository)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        return nullcontext()
    return cache.lock(repository, wait=True)


def download(repository: str, revision: str = cache.MAIN, *, progress: Progress = silent) -> Path:
    """The folder of a revision (branch, tag or commit) as the Hub has it now, after its missing and damaged files were
    fetched. Without a connection, a complete earlier download. The caller holds the repository's lock. Raises
    ValueError for repositories that can't be read or hold no model of ours, and OSError for failed downloads, which the
    same call resumes."""
    try:
        info = model_info(repository, revision)
    except Exception as error:
        folder = _earlier(repository, revision) if _is_offline(error) else None
        if folder is None:
            raise _explanation(error, repository, revision) from error
        log.info("%s; using %s", _reason(error), folder)
        return folder
    try:
        folder = _fetch(repository, revision, info, progress)
    except Exception as error:
        raise _explanation(error, repository, revision, started=True) from error
    if folder.name != info.sha:
        raise OSError(
            f"{repository} changed on the Hub while it was downloaded: run the same command again"
        )
    if text := files.fault(folder):
        raise ValueError(f"{repository} isn't complete on the Hub: {text}")
    cache.record_commit(repository, revision, folder.name)
    return folder


def current_commit(repository: str, revision: str) -> str | None:
    """The commit of a revision on the Hub now; without a connection, that of the last download, or None."""
    try:
        return model_info(repository, revision).sha
    except Exception as error:
        if _is_offline(error):
            return cache.commit_of(repository, revision)
        raise _explanation(error, repository, revision) from error


def model_info(repository: str, revision: str) -> "ModelInfo":
    """The commit and the files of a revision on the Hub."""
    from huggingface_hub import HfApi, constants

    timeout = constants.HF_HUB_ETAG_TIMEOUT
    return HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=timeout)


def _link(repository: str, revision: str, names: Sequence[str]) -> Path:
    """The snapshot of a revision after the files of these names that aren't in the cache were fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm

    class NoBar(tqdm):  # type: ignore[type-arg, misc, unused-ignore]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

    return Path(
        snapshot_download(
            repository, revision=revision, allow_patterns=list(names), tqdm_class=NoBar
        )
    )


def _fetch(repository: str, revision: str, info: "ModelInfo", progress: Progress) -> Path:
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    texts = [n for n in siblings if n.endswith(TEXTS) and n.count("/") == n.count("-lora/")]
    if "config.json" not in texts:
        raise ValueError(f"{repository} has no config.json on the Hub; expected a model")
    folder = _snapshot(repository, str(info.sha))
    _remove_damaged(folder, [siblings[name] for name in texts])
    folder = _link(repository, revision, texts)
    weights = needed_weights(repository, folder, list(siblings))
    progress("verification", None)
    _remove_damaged(folder, [siblings[name] for name in weights])
    missing = [siblings[name] for name in weights if not (folder / name).is_file()]
    if missing:
        progress("download", None)
        _check_space(repository, missing)
        _fetch_weights(repository, str(info.sha), missing, progress)
    folder = _link(repository, revision, [*texts, *weights])
    for name in texts:
        if text := damage(folder / name, siblings[name]):
            _unlink(folder / name)
            raise OSError(f"{text}; it was removed: run the same command again")
    return folder


def needed_weights(repository: str, folder: Path, names: Sequence[str]) -> list[str]:
    """Of the files of a repository, the weights that its model needs. Microsoft's layout has its adapters in the
    weights; their folders are copies. Raises ValueError for models that polyphi doesn't read."""
    values = files.read_json(folder / "config.json")
    if not cache.readable(folder):
        raise ValueError(
            f"{repository} has the model_type {values.get('model_type')!r}; expected a Phi-4-mini or Phi-4-multimodal "
            f"({', '.join(files.MODEL_TYPES)})"
        )
    index = files.read_json(folder / files.INDEX)
    if index:
        weights = sorted(set(index.get("weight_map", {}).values()))
    else:
        weights = sorted(n for n in names if n.endswith(".safetensors") and "/" not in n)
    if absent := [name for name in weights if name not in names]:
        raise ValueError(f"{repository} names {absent[0]} in its index, which the Hub doesn't have")
    if not weights:
        raise ValueError(f"{repository} has no safetensors on the Hub; other weights aren't read")
    if files.MODEL_TYPES[values["model_type"]] != "original":
        weights += sorted(n for n in names if n.endswith("-lora/adapter_model.safetensors"))
    return weights


def _snapshot(repository: str, commit: str) -> Path:
    """The folder of a commit in huggingface_hub's cache."""
    return _repository_folder(repository) / "snapshots" / commit


def _repository_folder(repository: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def _earlier(repository: str, revision: str) -> Path | None:
    """A complete download of a revision, by us or by another program."""
    if folder := stored(repository, revision):
        return folder
    with suppress(OSError):
        commit = (_repository_folder(repository) / "refs" / revision).read_text().strip()
        folder = _snapshot(repository, commit)
        return folder if cache.readable(folder) and files.fault(folder) is None else None
    return None


def damage(path: Path, sibling: "RepoSibling") -> str | None:
    """How a file differs from what the Hub lists: its size, or its hash where the Hub has one."""
    size = path.stat().st_size
    if sibling.size is not None and size != sibling.size:
        return f"{path} has {size:,} bytes, the Hub lists {sibling.size:,}"
    if sibling.lfs is not None:
        expected, digest = sibling.lfs.sha256, hashlib.sha256()
    elif sibling.blob_id is not None:
        expected, digest = sibling.blob_id, hashlib.sha1(b"blob %d\0" % size)
    else:
        return None
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != expected:
        return f"{path} has the hash {digest.hexdigest()[:12]}, the Hub lists {expected[:12]}"
    return None


def _remove_damaged(folder: Path, siblings: "Sequence[RepoSibling]") -> None:
    """Delete files of an earlier download that differ from the Hub's, so that they are fetched again."""
    for sibling in siblings:
        path = folder / sibling.rfilename
        if path.is_file() and (text := damage(path, sibling)):
            log.warning("%s: it is downloaded again", text)
            _unlink(path)


def _unlink(path: Path) -> None:
    path.resolve().unlink(missing_ok=True)  # the content; `path` is a link to it
    path.unlink(missing_ok=True)


def _check_space(repository: str, siblings: "Sequence[RepoSibling]") -> None:
    folder = _repository_folder(repository)
    parts = sum(p.stat().st_size for p in folder.glob(f"blobs/*{PARTIAL}"))
    needed = max(0, sum(sibling.size or 0 for sibling in siblings) - parts)
    check_space(folder, needed, f"the download of {repository}", "HF_HOME")
    rest = f", {size_text(parts)} of it are here" if parts else ""
    total = sum(sibling.size or 0 for sibling in siblings)
    log.info("downloading %s: %s%s", repository, size_text(total), rest)


def check_space(folder: Path, needed: int, what: str, variable: str) -> None:
    """Raise OSError if the disk of a folder has less than `needed` bytes free."""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise disk_full(
            f"{what} needs {size_text(needed)}, {size_text(free)} are free at {existing}: set {variable} to a folder "
            "on a larger disk"
        )


def disk_full(message: str) -> OSError:
    """An error of a full disk with a message for the user."""
    error = OSError(message)
    error.errno = errno.ENOSPC
    return error


PARTIAL = ".polyphi.incomplete"
"""Suffix of partial files next to the content of complete ones, which is named by its hash."""


class _Partial:
    """A file that is appended to; `written` is called with the bytes of each piece, and may raise to stop."""

    def __init__(self, file: IO[bytes], written: Callable[[int], None]) -> None:
        self._file, self._written = file, written

    def write(self, piece: bytes) -> int:
        self._written(len(piece))
        return self._file.write(piece)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _fetch_weights(
    repository: str, commit: str, siblings: "Sequence[RepoSibling]", progress: Progress
) -> None:
    """Fetch files into the cache, each under its hash; the caller links them into the snapshot."""
    total = sum(sibling.size or 0 for sibling in siblings)
    state = {"bytes": 0}
    stopped, changing = threading.Event(), threading.Lock()

    def written(count: int) -> None:
        if stopped.is_set():
            raise InterruptedError("another file of the download failed")
        with changing:
            state["bytes"] += count
        progress("download", min(1.0, state["bytes"] / total) if total else None)

    waiting: SimpleQueue[RepoSibling] = SimpleQueue()
    results: SimpleQueue[Exception | None] = SimpleQueue()

    def work() -> None:
        with suppress(Empty):
            while not stopped.is_set():
                sibling = waiting.get_nowait()
                try:
                    _fetch_file(repository, commit, sibling, written)
                    results.put(None)
                except Exception as error:
                    results.put(error)

    for sibling in siblings:
        waiting.put(sibling)
    # No pool: an interrupted process would wait for its threads, and these for their next 10 MB.
    for _ in range(CONNECTIONS):
        threading.Thread(target=work, name="download", daemon=True).start()
    try:
        for _ in siblings:
            if error := results.get():
                raise error
    finally:
        stopped.set()


def _fetch_file(
    repository: str, commit: str, sibling: "RepoSibling", written: Callable[[int], None]
) -> None:
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    name = sibling.rfilename
    url = hf_hub_url(repository, name, revision=commit, endpoint=HfApi().endpoint)
    metadata = get_hf_file_metadata(url)
    size = sibling.size if sibling.size is not None else metadata.size
    blob = _repository_folder(repository) / "blobs" / str(metadata.etag)
    blob.parent.mkdir(parents=True, exist_ok=True)
    if blob.exists() and damage(blob, sibling) is None:
        return
    partial = blob.with_name(f"{metadata.etag}{PARTIAL}")
    for attempt in range(ATTEMPTS):
        with partial.open("ab") as file:
            here = file.tell()
            if size is not None and here > size:
                file.truncate(here := 0)
            if attempt == 0:
                written(here)
            try:
                http_get(
                    url,
                    _Partial(file, written),  # type: ignore[arg-type]
                    resume_size=here,
                    headers=build_hf_headers(),
                    expected_size=size,
                    displayed_filename=name,
                )
                break
            except Exception as error:
                file.flush()
                if attempt == ATTEMPTS - 1 or not _is_connection(error) or file.tell() == here:
                    raise
    if text := damage(partial, sibling):
        partial.unlink()
        raise OSError(f"{name} arrived damaged ({text}): run the same command again")
    partial.chmod(0o644)
    partial.replace(blob)


# Errors ------------------------------------------------------------------------------------------


def _explanation(
    error: Exception, repository: str, revision: str, *, started: bool = False
) -> Exception:
    """An error of the Hub, the connection or the disk as one line with a cure; `started`: parts of the download may be
    here."""
    from huggingface_hub import HfApi, errors

    endpoint = HfApi().endpoint
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return ValueError(
            f"{repository} is gated: accept its conditions at {endpoint}/{repository}, then {log_in}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ValueError(
            f"no folder {repository} here, and the Hub at {endpoint} has no such model, or it is private: check the "
            f"name, or, for an account that may read it, {log_in}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ValueError(f"{repository} has no revision {revision!r}{_revisions(repository)}")
    if _is_disk_full(error):
        text = str(error) if error.__class__ is OSError and not error.args[1:] else None
        return disk_full(
            text or f"the disk was full during the download of {repository} ({_first_line(error)})"
        )
    if started and (_is_offline(error) or _is_connection(error)):
        return OSError(
            f"the download of {repository} was interrupted ({_first_line(error)}): run the same command again, it "
            "resumes"
        )
    if _is_offline(error) or _is_connection(error):
        return ValueError(_offline_message(repository, revision, error))
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        cure = f"the Hub doesn't accept the token: {log_in}" if status == 401 else "try again later"
        return OSError(f"{repository}: the Hub at {endpoint} answers {status}; {cure}")
    return error


def _revisions(repository: str) -> str:
    from huggingface_hub import HfApi

    with suppress(Exception):
        refs = HfApi().list_repo_refs(repository)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
        return f"; it has {', '.join(names[:10])} and commits"
    return ""


def _offline_message(repository: str, revision: str, error: Exception) -> str:
    rows = [row for row in cache.entries() if row.repository == repository and not row.fault]
    if quants := sorted({row.quant for row in rows if row.quant}):
        other = f" ({repository} is stored in {' and '.join(quants)}: --quant {quants[0]})"
    else:
        other = ""
    name = repository.rpartition("/")[2]
    option = "" if revision == cache.MAIN else f" --revision {revision}"
    return (
        f"{repository} isn't stored here{other}, and {_reason(error)}: on a machine with a connection, run "
        f"`hf download {repository}{option} --local-dir {name}`, copy the folder here, and give its path as MODEL; "
        f"polyphi reads its *.json and *.safetensors, and vision-lora/ and speech-lora/ of transformers' layout"
    )


def _reason(error: Exception) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return f"the Hub at {HfApi().endpoint} can't be reached ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _is_offline(error: Exception) -> bool:
    """Whether the Hub couldn't be asked at all."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code >= 500
    if isinstance(error, errors.OfflineModeIsEnabled):
        return True
    return type(error).__name__ in (
        "ConnectError",
        "ConnectTimeout",
        "ConnectionError",
        "ProxyError",
        "ReadTimeout",
        "LocalEntryNotFoundError",
    )


def _is_connection(error: BaseException) -> bool:
    """Whether a connection broke: errors of the HTTP library that huggingface_hub uses."""
    module = type(error).__module__.partition(".")[0]
    return (
        module in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
        or isinstance(error, ConnectionError | TimeoutError)
        or "Consistency check failed" in str(error)
    )


def _is_disk_full(error: BaseException) -> bool:
    link: BaseException | None = error
    while link is not None:
        if getattr(link, "errno", None) in DISK_FULL:
            return True
        link = link.__cause__ or link.__context__
    return False
