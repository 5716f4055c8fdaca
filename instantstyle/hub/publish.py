"""`instantstyle publish`: the plugin's repository, on the Hub."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instantstyle.console import calm, table
from instantstyle.hub.export import chosen, write_repository
from instantstyle.version import __version__


TOKEN = re.compile(r"[!-~]+")  # what a header can hold; anything else would be quoted in an error
MEANINGS = {
    401: "the token is not valid; log in again with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there; use one with write permission for this owner",
    404: "there is no such owner or branch, or the token may not see it",
    409: "it is being changed at this moment; publish again, which goes on where this stopped",
}
"""What the Hub's statuses mean to who publishes."""


def run(options: argparse.Namespace) -> None:
    """Publish, or list what would be; the commit's address or the list goes to standard output.

    Raises:
        ValueError, OSError: A user's mistake, or what the Hub does not allow.
    """
    repo_id = check_repo_id(options.repo_id)
    token = "" if options.dry_run else find_token()
    bars = sys.stderr.isatty() and not options.quiet
    lent: dict[str, str] = {}  # where a file would be -> where it is: weights need not be written to be read once
    with calm(bars), tempfile.TemporaryDirectory() as scratch:
        write_repository(
            Path(scratch), repo_id, options.revision, chosen(options), lambda file, to: lent.update({to: file}), bars
        )
        files = named(Path(scratch), lent)
        if options.dry_run:
            print(listing(files))
            return
        with explained(repo_id, token):
            print(upload(files, repo_id, options.private, options.revision, token))


def check_repo_id(text: str) -> str:
    """Refuse what is not OWNER/NAME.

    Raises:
        ValueError: It is not.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise ValueError(f"REPO_ID: {error}") from error
    if "/" not in text:
        raise ValueError(f"REPO_ID: expected OWNER/NAME, got {text!r}.")
    return text


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


def listing(files: Mapping[str, Path]) -> str:
    """List files with their sizes."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    rows = [*sorted(sizes.items()), (f"{len(sizes)} files", sum(sizes.values()))]
    return table([[name, f"{size / 1e3:,.1f} kB"] for name, size in rows], right=(1,))


def upload(files: Mapping[str, Path], repo_id: str, private: bool, revision: str | None, token: str) -> str:
    """Upload files to a repository, which is made if it is not there, in one commit.

    What the Hub has already is not uploaded again, also where an earlier upload was interrupted.

    Args:
        files: Name in the repository -> file.
        repo_id: OWNER/NAME.
        private: Whether others must not see it.
        revision: The branch, which is made if it is not there; by default `main`.
        token: To log in with.

    Returns:
        The address of the commit.

    Raises:
        ValueError: It is to be private, but is there already and public.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if private and not api.model_info(repo_id).private:
        raise ValueError(
            f"--private: {repo_id} is there already, and public; make it private in its settings, or publish under "
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
        raise OSError(f"REPO_ID: {repo_id}: publishing needs the network, but HF_HUB_OFFLINE is set.") from error
    except (HTTPError, RuntimeError, OSError) as error:  # uploading threads wrap theirs; hf_xet's are of the last kind
        # Without its cause, which may quote headers.
        raise OSError(f"REPO_ID: {repo_id}: {meaning(error).replace(token, '***')}") from None


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
    return f"{MEANINGS[status]} (HTTP {status})." if status in MEANINGS else f"the Hub answers {status}: {said}."
