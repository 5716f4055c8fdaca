"""The plugin's repository, on the Hub."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instantstyle.hub.checkpoint import Checkpoint
from instantstyle.hub.repository import write_repository
from instantstyle.version import __version__


TOKEN = re.compile(r"[!-~]+")  # what a header can hold; anything else would be quoted in an error
STATUSES = {
    401: "the token is not valid; log in again with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there; use one with write permission for this owner",
    404: "there is no such owner or branch, or the token may not see it",
    409: "it is being changed at this moment; publish again, which goes on where this stopped",
}
"""What the Hub's statuses mean to who publishes."""


def publish(
    repo_id: str,
    checkpoint: Checkpoint | None = None,
    *,
    private: bool = False,
    revision: str | None = None,
    bars: bool = False,
) -> str:
    """Write the plugin's repository, and upload it. It is made if it is not there.

    What the Hub has already is not uploaded again, also where an earlier upload was interrupted. The token is that of
    HF_TOKEN or of `hf auth login`.

    Args:
        repo_id: OWNER/NAME.
        checkpoint: What to publish beside the plugin, as `find_checkpoint` finds it.
        private: Whether others must not see it.
        revision: The branch, which is made if it is not there; by default `main`.
        bars: Whether to show progress.

    Returns:
        The address of the commit.

    Raises:
        ValueError: There is no such name or no token, or it is to be private, but is there already and public.
        OSError: The Hub refuses it, or cannot be reached.

    Example:
        >>> publish("someone/instantstyle", find_checkpoint("tiny"))
    """
    check_repo_id(repo_id)
    token = find_token()
    with repository_files(repo_id, checkpoint, revision, bars) as files, explained(repo_id, token):
        return upload(files, repo_id, private, revision, token)


def list_files(
    repo_id: str, checkpoint: Checkpoint | None = None, *, revision: str | None = None, bars: bool = False
) -> dict[str, int]:
    """Return what `publish` would upload, without the network: file -> bytes. Arguments are those of `publish`."""
    check_repo_id(repo_id)
    with repository_files(repo_id, checkpoint, revision, bars) as files:
        return {name: path.stat().st_size for name, path in files.items()}


@contextmanager
def repository_files(
    repo_id: str, checkpoint: Checkpoint | None, revision: str | None, bars: bool
) -> Iterator[dict[str, Path]]:
    """Give the files that the repository holds, by their names in it."""
    lent: dict[str, str] = {}  # where a file would be -> where it is: weights need not be written to be read once
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_repository(folder, repo_id, revision, checkpoint, lambda file, to: lent.update({to: file}), bars)
        yield named(folder, lent)


def check_repo_id(repo_id: str) -> None:
    """Refuse what is not OWNER/NAME.

    Raises:
        ValueError: It is not.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"`repo_id`: {error}") from error
    if "/" not in repo_id:
        raise ValueError(f"`repo_id`: expected OWNER/NAME, got {repo_id!r}.")


def find_token() -> str:
    """Return the token that HF_TOKEN or `hf auth login` left.

    Raises:
        ValueError: There is none, or it cannot be one. The message does not quote it.
    """
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise ValueError("no token to publish with: log in with `hf auth login`, or set HF_TOKEN.")
    if not TOKEN.fullmatch(token):
        raise ValueError("the token holds characters that no token has: log in again with `hf auth login`.")
    return token


def named(folder: Path, lent: Mapping[str, str]) -> dict[str, Path]:
    """Name what goes into the repository: the files in a folder, and those that are lent to it."""
    files = {str(path): path for path in folder.rglob("*") if path.is_file()} | {
        target: Path(source) for target, source in lent.items()
    }
    return {Path(place).relative_to(folder).as_posix(): path for place, path in sorted(files.items())}


def upload(files: Mapping[str, Path], repo_id: str, private: bool, revision: str | None, token: str) -> str:
    """Upload files to a repository, in one commit, and return its address.

    Args:
        files: Name in the repository -> file.
        repo_id, private, revision: As for `publish`.
        token: To log in with.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if private and not api.model_info(repo_id).private:
        raise ValueError(
            f"`private`: {repo_id} is there already, and public; make it private in its settings, or publish under "
            "another name."
        )
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    operations = [CommitOperationAdd(name, path) for name, path in files.items()]
    commit = api.create_commit(
        repo_id, operations, commit_message=f"Publish instantstyle {__version__}", revision=revision
    )
    return commit.commit_url


@contextmanager
def explained(repo_id: str, token: str) -> Iterator[None]:
    """Say in one line what the Hub refused, or that it cannot be reached, never with the token in it."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise OSError(f"`repo_id`: {repo_id}: publishing needs the network, but HF_HUB_OFFLINE is set.") from error
    except (HTTPError, RuntimeError, OSError) as error:  # uploading threads wrap theirs; hf_xet's are of the last kind
        # Without its cause, which may quote headers.
        raise OSError(f"`repo_id`: {repo_id}: {meaning(error).replace(token, '***')}") from None


def meaning(error: BaseException) -> str:
    """Say what an error of the Hub, or of the way to it, means."""
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "response", None) is None:
        cause = cause.__cause__
    if cause is None:
        return (
            f"the Hub cannot be reached, or the connection broke ({error}); publishing again goes on from there, with "
            "HF_HUB_DISABLE_XET=1 not through Xet"
        )
    response: Any = cause.response  # type: ignore[attr-defined]
    reason = getattr(response, "reason_phrase", None) or response.reason  # of httpx, and of requests before 1.0
    status, said = response.status_code, getattr(cause, "server_message", None) or reason
    return f"{STATUSES[status]} (HTTP {status})." if status in STATUSES else f"the Hub answers {status}: {said}."
