"""Pushing a model folder to the Hugging Face Hub, private unless requested otherwise.

>>> target = HubTarget("owner/name")
>>> prepare(target)                      # before the training: raises if the push would fail
>>> push(Path("runs/calls/model"), target)

The token is the one that huggingface_hub finds: `HF_TOKEN`, or that of `hf auth login`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
IGNORED = [".*", "*/.*"]
"""Hidden files of a model folder, which aren't pushed."""


@dataclass(frozen=True)
class HubTarget:
    """A repository on the Hub, `owner/name`. Raises ValueError for another form of name."""

    name: str
    public: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"--push-to-hub: expected owner/name, found {self.name!r}")


def target(name: str | None, public: bool) -> HubTarget | None:
    """The repository that a command's options name, None for no push. Raises ValueError for `public` alone."""
    if name is None and public:
        raise ValueError("--public needs --push-to-hub owner/name")
    return None if name is None else HubTarget(name, public)


def prepare(target: HubTarget) -> None:
    """Create the repository, unless it exists. Raises ValueError where a push would fail (no token, an invalid one,
    one that can't write there, no connection), and for an existing public repository without `public`."""
    api = HfApi()
    if get_token() is None:
        raise ValueError(
            f"--push-to-hub {target.name}: there is no token for the Hub; log in with `hf auth login`, or set HF_TOKEN"
        )
    try:
        api.create_repo(target.name, private=not target.public, exist_ok=True)
        private = api.repo_info(target.name).private
    except HfHubHTTPError as error:
        raise ValueError(f"--push-to-hub {target.name}: {_reason(error)}") from error
    except Exception as error:  # those of the client's HTTP library without a connection
        raise ValueError(
            f"--push-to-hub {target.name}: the Hub at {api.endpoint} can't be reached ({error})"
        ) from error
    if not private and not target.public:
        raise ValueError(
            f"--push-to-hub {target.name}: that repository is public; add --public, or choose another name"
        )


def push(folder: Path, target: HubTarget) -> str:
    """Upload the files of a model folder as one commit or several; returns the repository's address. Raises OSError
    where that fails: the folder is complete, and the same command pushes it again."""
    api = HfApi()
    try:
        api.upload_folder(
            repo_id=target.name,
            folder_path=folder,
            ignore_patterns=IGNORED,
            commit_message="Upload a model trained with polyphi",
        )
    except Exception as error:
        answer = next((e for e in (error, error.__cause__) if isinstance(e, HfHubHTTPError)), None)
        reason = _reason(answer) if answer else str(error)
        raise OSError(
            f"{folder} is complete, but was not pushed to {target.name}: {reason}; run the same command again"
        ) from error
    return f"{api.endpoint}/{target.name}"


def _reason(error: HfHubHTTPError) -> str:
    """The reason of an error of the Hub, with what the user can do."""
    status = error.response.status_code
    meaning = {
        401: "the Hub doesn't accept the token; log in again with `hf auth login`, or set HF_TOKEN to a valid one",
        403: "the token has no permission to write there; create one with write access, or choose another owner",
        404: "there is no such owner or repository, or the token has no access to it",
    }.get(status, error.server_message or "")
    return f"the Hub answers {status}: {meaning}"
