"""Models that are stored on this machine: downloads in the Hub's cache, and quantized models in ours.

>>> for entry in entries(): print(entry.name, entry.bytes)

A quantized model lies in `models/OWNER--NAME/COMMIT/SCHEME-vFORMAT` of the cache folder (`cache_folder`). The file
`models/OWNER--NAME/refs/REVISION` has the commit that a branch or tag had when it was downloaded and verified: until
the next `polyphi pull`, this commit is used, and the Hub isn't asked again. Downloads are in huggingface_hub's cache
(`$HF_HUB_CACHE`, by default `~/.cache/huggingface/hub`), which other programs share. This module imports no torch.
"""

import errno
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyphi.checkpoints import files
from polyphi.runtime.files import cache_folder, locked, write_whole

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo

HUB_NAME = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
"""A repository of the Hub, with or without a revision."""
MAIN = "main"
COMMIT = re.compile(r"[0-9a-f]{40}")
SCHEME = re.compile(r"(?P<scheme>[\w-]+)-v(?P<format>\d+)")
SHORT = 12
"""Digits of a commit that are shown."""
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
MIN_SIMILARITY = 0.75
"""Similarity (difflib) of names of folders, from which on one may be a typing error of the other: two swapped
characters of four."""
OUTPUT_FOLDERS = ("runs", "results", "exported", "models", "checkpoints", "data", "out")
"""Folders that our commands and pages write to. `runs/nano` is a path, even where there is no `runs` here: in another
folder the same command must not load what somebody uploaded to the Hub under this name."""


@dataclass(frozen=True)
class StoredModel:
    """A stored model. `revision`: its commit. `quant`: the scheme of a quantized model, None for a download. `bytes`:
    of its files, those of an interrupted download included. `last_used`: seconds since 1970. `fault`: why it isn't
    complete, or None. `name` is what `removal.remove` takes: OWNER/NAME, with @REVISION where several are stored, and
    :SCHEME for quantized models."""

    repository: str
    revision: str
    quant: str | None
    path: Path
    bytes: int
    last_used: float
    fault: str | None = None
    refs: tuple[str, ...] = ()
    name: str = field(default="", compare=False)

    def as_json(self) -> dict[str, Any]:
        """The fields as values of a JSON object."""
        return {**asdict(self), "path": str(self.path), "refs": list(self.refs)}


def models_folder() -> Path:
    """The folder of quantized models and commits of downloads."""
    return cache_folder() / "models"


def quantized_folder(repository: str, commit: str, scheme: str, format: int) -> Path:
    """The folder of a commit's quantized model in a version of our layout."""
    return repository_folder(repository) / commit / f"{scheme}-v{format}"


def repository_folder(repository: str) -> Path:
    """The folder of a repository's quantized models and commits in our cache."""
    return models_folder() / repository.replace("/", "--")  # the Hub allows no -- in names


def hub_folder(repository: str) -> Path:
    """The folder of a repository in huggingface_hub's cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def hub_name(source: str | Path) -> tuple[str, str] | None:
    """The repository and revision that `owner/name`, `owner/name@revision` or either after `hf:` names; None for
    folders and files that exist, and for other texts. Raises ValueError for a name without `hf:` that looks like a path
    and isn't stored: the Hub may have a model of a stranger by that name."""
    text = str(source)
    match = HUB_NAME.fullmatch(text.removeprefix("hf:"))
    if match is None or Path(source).expanduser().exists():
        return None
    repository, revision = match["repository"], match["revision"] or MAIN
    if not text.startswith("hf:") and not _is_known(repository):
        path = Path(repository)
        near = _near_folder(path)
        if near or path.parent.is_dir() or path.parent.name in OUTPUT_FOLDERS:
            hint = f"did you mean {near}? For" if near else "for"
            raise ValueError(
                f"expected a checkpoint folder, found no folder {repository} here; {hint} a model of the Hub write "
                f"hf:{text}"
            )
    return repository, revision


def _is_known(repository: str) -> bool:
    """Whether a model of a repository is or was stored, so that a user has named it before."""
    return repository_folder(repository).is_dir() or any(
        hub_folder(repository).glob("snapshots/*/config.json")
    )


def _near_folder(path: Path) -> Path | None:
    """An existing folder of the form owner/name that `path` may be a typing error of."""
    owners = [p.name for p in Path().glob("*") if p.is_dir()]
    for owner in get_close_matches(path.parent.name, owners, cutoff=MIN_SIMILARITY):
        names = [p.name for p in Path(owner).glob("*") if p.is_dir()]
        if near := get_close_matches(path.name, names, n=1, cutoff=MIN_SIMILARITY):
            return Path(owner, near[0])
    return None


@contextmanager
def lock(repository: str, *, wait: bool) -> Iterator[bool]:
    """The lock of a repository between processes that download, quantize or remove it; without `wait` yields False at
    once if it is taken. It is a file in our cache and another in the Hub's, since processes with another cache of ours
    may share that. A cache that is read-only is not locked, since this process writes nothing there."""
    hub = hub_folder(repository)
    ours = models_folder() / ".locks" / f"{repository.replace('/', '--')}.lock"
    with ExitStack() as stack:
        yield all(
            _is_locked(stack, path, wait)
            for path in (ours, hub.parent / ".locks" / hub.name / "polyphi.lock")
        )


def _is_locked(stack: ExitStack, path: Path, wait: bool) -> bool:
    try:
        return stack.enter_context(locked(path, wait))
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        return True


def commit_of(repository: str, revision: str) -> str | None:
    """The commit of a revision that was downloaded and verified, None if none was. Raises ValueError for a revision
    that is no name."""
    if COMMIT.fullmatch(revision):
        return revision
    if re.fullmatch(r"[0-9a-f]{7,39}", revision):
        commits = {e.revision for e in entries() if e.repository == repository}
        matches = [commit for commit in commits if commit.startswith(revision)]
        if len(matches) == 1:
            return matches[0]
    return read_ref(repository_folder(repository), revision)


def read_ref(folder: Path, revision: str) -> str | None:
    """The commit that a repository's folder, in our cache or the Hub's, has recorded for a branch or tag."""
    with suppress(OSError, UnicodeDecodeError):
        commit = _ref_file(folder, revision).read_text().strip()
        return commit if COMMIT.fullmatch(commit) else None
    return None


def check_revision(revision: str) -> None:
    """Raise ValueError for a revision that can't be the name of a branch, tag or commit, and of a file here."""
    if not files.is_inner(revision):
        raise ValueError(f"expected a branch, tag or commit as revision, found {revision!r}")


def _ref_file(folder: Path, revision: str) -> Path:
    """The file that records the commit of a branch or tag in a repository's folder. Raises as `check_revision`."""
    check_revision(revision)
    return folder / "refs" / revision


def record_commit(repository: str, revision: str, commit: str) -> None:
    """Record that a revision is this commit, which is completely downloaded. Does nothing if the cache is read-only:
    the Hub is then asked at the next start."""
    if commit_of(repository, revision) != commit:
        write_ref(repository_folder(repository), revision, commit)


def write_ref(folder: Path, revision: str, commit: str) -> None:
    """Record the commit of a branch or tag in a repository's folder, in our cache or the Hub's, unless that is
    read-only."""
    if COMMIT.fullmatch(revision) or read_ref(folder, revision) == commit:
        return
    path = _ref_file(folder, revision)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, commit)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise


def record_use(folder: Path) -> None:
    """Record that a quantized model is used now, for `Entry.last_used`."""
    with suppress(OSError):
        os.utime(folder)


def entries() -> list[StoredModel]:
    """Downloads of models that polyphi reads and quantized models, by name."""
    rows = [*_downloads(), *_quantized()]
    revisions = Counter((row.repository, row.quant) for row in rows)
    named = []
    for row in rows:
        several = revisions[row.repository, row.quant] > 1
        revision = f"@{row.revision[:SHORT]}" if several else ""
        scheme = f":{row.quant}" if row.quant else ""
        values = {**vars(row), "name": f"{row.repository}{revision}{scheme}"}
        named.append(StoredModel(**values))
    return sorted(named, key=lambda row: row.name)


def folder_of(row: StoredModel) -> Path:
    """The cache folder that an entry is in: huggingface_hub's or ours."""
    return row.path.parents[2]


def _downloads() -> Iterator[StoredModel]:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    for repository in repositories:
        if repository.repo_type != "model":
            continue
        partial = sum(path.stat().st_size for path in unlinked_files(repository))
        for revision in repository.revisions:
            folder = revision.snapshot_path
            if not readable(folder):
                continue
            fault = files.fault(folder)
            yield StoredModel(
                repository.repo_id,
                revision.commit_hash,
                None,
                folder,
                revision.size_on_disk + (partial if fault else 0),
                max((f.blob_last_accessed for f in revision.files), default=0.0),
                fault,
                tuple(sorted(revision.refs)),
            )


def unlinked_files(repository: "CachedRepoInfo") -> list[Path]:
    """Files of a download that no snapshot has yet: complete and partial ones of an interrupted download."""
    linked = {file.blob_path for revision in repository.revisions for file in revision.files}
    blobs = repository.repo_path.resolve().glob("blobs/*")
    return [path for path in blobs if path not in linked]


def readable(folder: Path) -> bool:
    """Whether a folder has the configuration of a type of model that polyphi reads."""
    with suppress(ValueError, OSError):
        return files.read_json(folder / "config.json").get("model_type") in files.MODEL_TYPES
    return False


def _quantized() -> Iterator[StoredModel]:
    for folder in sorted(models_folder().glob("*--*/*/*")):
        name = SCHEME.fullmatch(folder.name)
        commit = folder.parent.name
        if name is None or not COMMIT.fullmatch(commit):
            continue
        repository = folder.parent.parent.name.replace("--", "/", 1)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        used = folder.stat().st_mtime
        fault = files.fault(folder)
        refs = [r for r in recorded_refs(repository) if commit_of(repository, r) == commit]
        yield StoredModel(
            repository, commit, name["scheme"], folder, size, used, fault, tuple(refs)
        )


def recorded_refs(repository: str) -> list[str]:
    """The branches and tags of a repository whose commits are recorded."""
    folder = repository_folder(repository) / "refs"
    return [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
