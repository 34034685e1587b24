"""What the Hub lists of a model: its commit, and the names, sizes and hashes of its files, checked before any use.

>>> listing = ask("microsoft/Phi-4-mini-instruct", "main")
>>> listing.files["config.json"].size

`HF_ENDPOINT` may name any server, and a proxy may change answers. Names and hashes become paths on this disk: those
that don't lie below the model's folder are refused. This module imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from polyphi.checkpoints import files
from polyphi.checkpoints.files import DIGEST
from polyphi.hub import cache

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: its `size` in bytes, and its `digest` (files.DIGEST). Both are None where the listing
    doesn't have them; `complete` adds them."""

    name: str
    size: int | None
    digest: str | None


@dataclass(frozen=True)
class Listing:
    """A revision of a repository: its commit, and its files by name."""

    repository: str
    commit: str
    files: dict[str, HubFile]


def ask(repository: str, revision: str) -> Listing:
    """The commit and the files of a revision on the Hub. Raises ValueError for an answer that can't be trusted, and the
    errors of huggingface_hub."""
    from huggingface_hub import HfApi, constants

    cache.check_revision(revision)
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    try:
        info = HfApi().model_info(
            repository, revision=revision, files_metadata=True, timeout=timeout
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _untrusted(
            f"an answer that isn't that of a Hub ({error!r:.100})", repository
        ) from error
    if not isinstance(info.sha, str) or not cache.COMMIT.fullmatch(info.sha):
        raise _untrusted(
            f"{info.sha!r:.100} as a commit; expected 40 hexadecimal digits", repository
        )
    listed = [_file(sibling, repository) for sibling in info.siblings or ()]
    return Listing(repository, info.sha, {file.name: file for file in listed})


def _file(sibling: "RepoSibling", repository: str) -> HubFile:
    name = sibling.rfilename
    if not files.is_inner(name):
        raise _untrusted(
            f"a file named {name!r:.200}, which may lie outside its folder", repository
        )
    digest = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
    return HubFile(name, _size(sibling.size, name, repository), _digest(digest, name, repository))


def complete(listing: Listing, names: Sequence[str]) -> list[HubFile]:
    """The files with these names; a size and a hash that isn't listed is that of the answer for the file (its
    Content-Length and ETag). Raises ValueError where that has none, or a hash that isn't one."""
    return [_completed(listing, listing.files[name]) for name in names]


def _completed(listing: Listing, file: HubFile) -> HubFile:
    from huggingface_hub import get_hf_file_metadata

    if file.size is not None and file.digest is not None:
        return file
    answer = get_hf_file_metadata(address(listing, file))
    repository = listing.repository
    if file.digest is None:
        file = replace(file, digest=_digest(answer.etag, file.name, repository))
    if file.size is None:
        file = replace(file, size=_size(answer.size, file.name, repository))
    for value, what in ((file.digest, "hash (ETag)"), (file.size, "size")):
        if value is None:
            raise ValueError(
                f"the Hub at {_endpoint()} has no {what} of {file.name} of {repository}, so a download can't be "
                "checked; expected those of huggingface.co: set HF_ENDPOINT to another address"
            )
    return file


def address(listing: Listing, file: HubFile) -> str:
    """The URL of a file."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(listing.repository, file.name, revision=listing.commit, endpoint=_endpoint())


def _digest(value: Any, name: str, repository: str) -> str | None:
    if value is not None and (not isinstance(value, str) or not DIGEST.fullmatch(value)):
        raise _untrusted(
            f"the hash {value!r:.100} of {name}; expected 40 or 64 hexadecimal digits", repository
        )
    return value


def _size(value: Any, name: str, repository: str) -> int | None:
    if value is not None and (type(value) is not int or value < 0):
        raise _untrusted(f"the size {value!r:.100} of {name}; expected bytes", repository)
    return value


def _untrusted(answer: str, repository: str) -> ValueError:
    return ValueError(
        f"the Hub at {_endpoint()} isn't trusted: for {repository} it lists {answer}; check HF_ENDPOINT and proxies"
    )


def _endpoint() -> str:
    from huggingface_hub import HfApi

    return HfApi().endpoint
