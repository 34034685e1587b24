"""Downloads from the Hub: only the files that a model needs, resumable, and verified before they count as complete.

>>> folder = download("microsoft/Phi-4-mini-instruct")   # asks the Hub; what is there already isn't fetched again
>>> folder = stored("microsoft/Phi-4-mini-instruct")     # of the last download, without a connection; None if none is

The files lie in huggingface_hub's cache, where other programs find them too: `blobs/HASH` has the content, and
`snapshots/COMMIT/NAME` is a link to it. They are fetched by huggingface_hub's `http_get` into a partial file that we
keep: `snapshot_download` deletes its own when it is interrupted (version 2), and then a shard of 5 GB would begin
again; it also uses names and hashes as paths as the Hub sends them. A complete file replaces a damaged one of its name
at once; nothing is deleted but partial files that arrived damaged. This module imports no torch.
"""

import errno
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from polyphi.checkpoints import files
from polyphi.hub import cache, hashes, listing
from polyphi.hub.listing import HubFile, Listing
from polyphi.runtime.files import remove, rename, size_text, sync

log = logging.getLogger(__name__)
TEXTS = (".json", ".txt", ".jinja", "README.md")
"""Ends of the names of files that are fetched first; a README states the licence."""
INNER = re.compile(r"-(?:lora|modality)/")
"""Ends of the names of folders in a model's folder."""
MODALITY_WEIGHTS = re.compile(r"[^/]+-modality/(?:adapter_)?model\.safetensors")
CONNECTIONS = 4
"""Files that are fetched at the same time."""
ATTEMPTS = 3
"""Connections for a file in one command, each with the retries of huggingface_hub. The next command resumes."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
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


def alone(repository: str) -> AbstractContextManager[bool]:
    """The lock of a repository, after another process released it (`cache.lock`)."""
    with cache.lock(repository, wait=False) as free:
        if not free:
            log.info("waiting for another process that downloads or quantizes %s", repository)
    return cache.lock(repository, wait=True)


def download(
    repository: str,
    revision: str = cache.MAIN,
    *,
    verify: bool = False,
    progress: Progress = silent,
) -> Path:
    """The folder of a revision (branch, tag or commit) as the Hub has it now, after its missing and damaged files were
    fetched. Without a connection, a complete earlier download, with `verify` after its hashes were compared. The caller
    holds the repository's lock. Raises ValueError for repositories that can't be read or hold no model of ours, for a
    Hub that isn't trusted, and for damage without a connection; OSError for failed downloads, which the same call
    resumes."""
    try:
        listed = listing.ask(repository, revision)
    except Exception as error:
        folder = _earlier(repository, revision) if _is_offline(error) else None
        if folder is None:
            raise _explanation(error, repository, revision) from error
        log.info("%s; using %s", _reason(error), folder)
        if verify:
            hashes.check(folder, lambda share: progress("verification", share))
        return folder
    try:
        folder = _fetch(listed, progress)
    except Exception as error:
        raise _explanation(error, repository, revision, started=True) from error
    if text := files.fault(folder):
        raise ValueError(f"{repository} isn't complete on the Hub: {text}")
    cache.write_ref(cache.hub_folder(repository), revision, listed.commit)
    cache.record_commit(repository, revision, listed.commit)
    return folder


def current_commit(repository: str, revision: str) -> str | None:
    """The commit of a revision on the Hub now; without a connection, that of the last download, or None."""
    try:
        return listing.ask(repository, revision).commit
    except Exception as error:
        if _is_offline(error):
            return cache.commit_of(repository, revision)
        raise _explanation(error, repository, revision) from error


def _fetch(listed: Listing, progress: Progress) -> Path:
    """Fetch the files of a model that aren't in the cache, and link them into the snapshot's folder."""
    # those in the folder, and in its folders of adapters and of users' modalities
    texts = [n for n in listed.files if n.endswith(TEXTS) and n.count("/") == len(INNER.findall(n))]
    if "config.json" not in texts:
        raise ValueError(f"{listed.repository} has no config.json on the Hub; expected a model")
    folder = _snapshot(listed.repository, listed.commit)
    with _without_bars():
        total = _fetch_files(listed, listing.complete(listed, texts), silent)
    weights = listing.complete(
        listed, needed_weights(listed.repository, folder, list(listed.files))
    )
    progress("verification", None)
    total += _fetch_files(listed, weights, progress)
    log.info("verified %d files, %s, in %s", len(texts) + len(weights), size_text(total), folder)
    return folder


def _fetch_files(listed: Listing, hub_files: Sequence[HubFile], progress: Progress) -> int:
    """Fetch and link files; returns the bytes of all. What is here is compared with its hash first."""
    folder = _snapshot(listed.repository, listed.commit)
    missing: dict[Path, list[HubFile]] = {}  # by content: two files may have the same
    for file in hub_files:
        if not _is_whole(folder / file.name, file):
            missing.setdefault(_blob(listed, file), []).append(file)
    contents = {
        blob: same[0]
        for blob, same in missing.items()
        if not blob.is_file() or damage(blob, same[0])
    }
    if contents:
        progress("download", None)
        _check_space(listed.repository, contents)
        _fetch_contents(listed, contents, progress)
    for blob, same in missing.items():
        _link(blob, folder, [file.name for file in same])
    return sum(file.size or 0 for file in hub_files)


def _is_whole(path: Path, file: HubFile) -> bool:
    if not path.is_file():
        return False
    if text := damage(path, file):
        log.warning("%s: it is downloaded again", text)
    return not text


def damage(path: Path, file: HubFile) -> str | None:
    """How the content at `path` differs from a file of the Hub: in its size, or else in its hash."""
    size = path.stat().st_size
    if size != file.size:
        return f"{path} has {size:,} bytes, the Hub lists {file.size:,}"
    assert file.digest is not None
    return hashes.mismatch(path, file.digest)


def _link(blob: Path, folder: Path, names: Sequence[str]) -> None:
    """Link files of a snapshot's folder to their content. Where the file system has no links, it is moved there."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{path.parent} is a link to another folder: remove it, and run the same command again"
            )
        partial = path.with_name(f".{path.name}.partial")
        remove(partial)  # of a process that was killed
        try:
            partial.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:
            if name == names[-1]:
                rename(blob, partial)
            else:
                shutil.copyfile(blob, partial)
        rename(partial, path)


def needed_weights(repository: str, folder: Path, names: Sequence[str]) -> list[str]:
    """The weight files of a repository that its model needs. Microsoft's layout has its adapters in the weights; their
    folders are copies. Raises ValueError for models that polyphi doesn't read."""
    values = files.read_json(folder / "config.json")
    if not cache.readable(folder) and values.get("model_type") not in files.SIGLIP_TYPES:
        model_type = values.get("model_type")
        unsupported = files.UNSUPPORTED.get(model_type or "")
        reason = f", which has {unsupported}" if unsupported else ""
        raise ValueError(
            f"{repository} has the model_type {model_type!r}{reason}; expected one of {', '.join(files.MODEL_TYPES)}"
        )
    index = folder / files.INDEX
    if index.is_file():
        weights = files.index_members(index)
    else:
        weights = sorted(n for n in names if n.endswith(".safetensors") and "/" not in n)
    if absent := [name for name in weights if name not in names]:
        raise ValueError(f"{repository} names {absent[0]} in its index, which the Hub doesn't have")
    if not weights:
        raise ValueError(f"{repository} has no safetensors on the Hub; other weights aren't read")
    if files.MODEL_TYPES.get(values["model_type"]) != "original":
        weights += sorted(n for n in names if n.endswith("-lora/adapter_model.safetensors"))
    weights += sorted(n for n in names if MODALITY_WEIGHTS.fullmatch(n))
    return weights


def _snapshot(repository: str, commit: str) -> Path:
    """The folder of a commit in huggingface_hub's cache."""
    return cache.hub_folder(repository) / "snapshots" / commit


def _blob(listed: Listing, file: HubFile) -> Path:
    """The content of a file in huggingface_hub's cache."""
    assert file.digest is not None
    return cache.hub_folder(listed.repository) / "blobs" / file.digest


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}{PARTIAL}")


def _earlier(repository: str, revision: str) -> Path | None:
    """A complete download of a revision, by us or by another program."""
    if folder := stored(repository, revision):
        return folder
    if commit := cache.read_ref(cache.hub_folder(repository), revision):
        folder = _snapshot(repository, commit)
        return folder if cache.readable(folder) and files.fault(folder) is None else None
    return None


def _check_space(repository: str, contents: dict[Path, HubFile]) -> None:
    partials = [path for blob in contents if (path := _partial(blob)).exists()]
    here = sum(path.stat().st_size for path in partials)
    total = sum(file.size or 0 for file in contents.values())
    folder = cache.hub_folder(repository)
    check_space(folder, max(0, total - here), f"the download of {repository}", "HF_HOME")
    rest = f", {size_text(here)} of it are here" if here else ""
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
    """A file of at most `limit` bytes that is appended to; `written` is called with the bytes of each piece. Both may
    raise to stop."""

    def __init__(self, file: IO[bytes], limit: int, written: Callable[[int], None]) -> None:
        self._file, self._limit, self._written = file, limit, written

    def write(self, piece: bytes) -> int:
        if self._file.tell() + len(piece) > self._limit:
            raise _TooLong
        self._written(len(piece))
        return self._file.write(piece)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _TooLong(Exception):
    """A server sent more of a file than it lists."""


@contextmanager
def _without_bars() -> Iterator[None]:
    """Let huggingface_hub show no bars: for small files."""
    from huggingface_hub import utils

    group = "huggingface_hub.http_get"
    if utils.are_progress_bars_disabled(group):
        yield
        return
    utils.disable_progress_bars(group)
    try:
        yield
    finally:
        utils.enable_progress_bars(group)


def _fetch_contents(listed: Listing, contents: dict[Path, HubFile], progress: Progress) -> None:
    """Fetch the content of files into the cache, each to its path there."""
    total = sum(file.size or 0 for file in contents.values())
    state = {"bytes": 0}
    stopped, changing = threading.Event(), threading.Lock()

    def written(count: int) -> None:
        if stopped.is_set():
            raise InterruptedError("another file of the download failed")
        with changing:
            state["bytes"] += count
        progress("download", min(1.0, state["bytes"] / total) if total else None)

    waiting: SimpleQueue[tuple[Path, HubFile]] = SimpleQueue()
    results: SimpleQueue[Exception | None] = SimpleQueue()

    def work() -> None:
        with suppress(Empty):
            while not stopped.is_set():
                blob, file = waiting.get_nowait()
                try:
                    _fetch_file(listed, file, blob, written)
                    results.put(None)
                except Exception as error:
                    results.put(error)

    for content in contents.items():
        waiting.put(content)
    # No pool: an interrupted process would wait for its threads, and these for their next 10 MB.
    for _ in range(CONNECTIONS):
        threading.Thread(target=work, name="download", daemon=True).start()
    try:
        for _ in contents:
            if error := results.get():
                raise error
    finally:
        stopped.set()


def _fetch_file(listed: Listing, file: HubFile, blob: Path, written: Callable[[int], None]) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    assert file.size is not None
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(blob)
    for attempt in range(ATTEMPTS):
        with partial.open("ab") as opened:
            here = opened.tell()
            if here > file.size:
                opened.truncate(here := 0)
            if attempt == 0:
                written(here)
            try:
                http_get(
                    listing.address(listed, file),
                    _Partial(opened, file.size, written),  # type: ignore[arg-type]
                    resume_size=here,
                    headers=build_hf_headers(),
                    expected_size=file.size,
                    displayed_filename=file.name,
                )
                break
            except _TooLong:
                remove(partial)
                raise OSError(
                    f"the Hub sent more than the {file.size:,} bytes it lists of {file.name} of {listed.repository}: "
                    "run the same command again, and check HF_ENDPOINT and proxies"
                ) from None
            except Exception as error:
                opened.flush()
                if attempt == ATTEMPTS - 1 or not _is_connection(error) or opened.tell() == here:
                    raise
    if text := damage(partial, file):
        remove(partial)
        raise OSError(f"{file.name} arrived damaged ({text}): run the same command again")
    partial.chmod(0o644)
    sync(partial)
    rename(partial, blob)


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
