"""Removing stored models (cache.py).

>>> remove("microsoft/Phi-4-mini-instruct")              # the download; the quantized model stays
>>> remove("microsoft/Phi-4-mini-instruct:int4")
"""

from contextlib import suppress

from polyphi.hub import cache
from polyphi.hub.cache import StoredModel
from polyphi.runtime import files


def remove(name: str) -> list[StoredModel]:
    """Delete the models with a name (OWNER/NAME, OWNER/NAME@REVISION, either with :SCHEME) and return their entries.
    Without a scheme that is the download, without a revision every one. Raises ValueError if there is none, and while
    another process downloads or quantizes it."""
    target, _, scheme = name.partition(":")
    parts = cache.HUB_NAME.fullmatch(target)
    rows = cache.entries()
    matches = [
        row
        for row in rows
        if parts is not None
        and row.repository == parts["repository"]
        and row.quant == (scheme or None)
        and (
            parts["revision"] is None
            or row.revision.startswith(parts["revision"])
            or parts["revision"] in row.refs
        )
    ]
    if not matches:
        names = ", ".join(row.name for row in rows) or "no models"
        raise ValueError(f"expected a name of `polyphi cache list` ({names}), found {name!r}")
    repository = matches[0].repository
    with cache.lock(repository, wait=False) as free:
        if not free:
            raise ValueError(
                f"{repository} is being downloaded or quantized by another process; wait until it ends"
            )
        for row in matches:
            if row.quant is None:
                _remove_download(row)
            else:
                files.remove(row.path)
        _remove_empty(repository)
    return matches


def _remove_download(row: StoredModel) -> None:
    from huggingface_hub import constants, scan_cache_dir

    caches = scan_cache_dir(constants.HF_HUB_CACHE)
    if row.fault:
        (repository,) = (
            r for r in caches.repos if (r.repo_id, r.repo_type) == (row.repository, "model")
        )
        for path in cache.unlinked_files(repository):
            files.remove(path)
    caches.delete_revisions(row.revision).execute()
    if row.path.exists():
        raise OSError(f"{row.path} could not be removed: delete the folder yourself")


def _remove_empty(repository: str) -> None:
    """Delete the folder of a repository if nothing of it is stored, and commits without a stored model."""
    commits = {row.revision for row in cache.entries() if row.repository == repository}
    folder = cache.repository_folder(repository)
    for ref in cache.recorded_refs(repository):
        if cache.commit_of(repository, ref) not in commits:
            files.remove(folder / "refs" / ref)
    if not commits:
        files.remove(folder)
        return
    for empty in [p for p in folder.glob("*") if cache.COMMIT.fullmatch(p.name)]:
        with suppress(OSError):  # has a model
            empty.rmdir()
