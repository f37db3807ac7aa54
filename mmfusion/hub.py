"""The model hub (huggingface.co, or HF_ENDPOINT's): what is fetched from it and put there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from mmfusion.errors import UserError, first_line, printable
from mmfusion.manifest import MANIFEST, edited, listed

LOGIN = "log in with `hf auth login`, set HF_TOKEN or give token"


class Source(NamedTuple):
    """How a repository is read; the defaults are the hub's own."""

    revision: str | None = None
    """Branch, tag or commit."""
    cache_dir: str | Path | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    """Only what is in the cache."""


USUAL = Source()


def may_be_hub_id(name: str) -> bool:
    """Whether the hub is asked for a name: ORGANISATION/NAME, the first of which is not here.

    `runs/` is where runs are, also before the first one.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    first, slash, _ = name.partition("/")
    return bool(slash) and first != "runs" and not os.path.lexists(first)


def download(name: str, what: str, files: list[str], source: Source = USUAL) -> Path:
    """A folder with these files (names or patterns) of a model on the hub."""
    from huggingface_hub import snapshot_download

    with _refusals(f"{what} {name}: no such folder, nor could the hub give it"):
        return Path(snapshot_download(name, allow_patterns=files, **source._asdict()))


def check_id(name: str) -> None:
    """Make sure that the hub takes such a name, before a model is written for it."""
    from huggingface_hub.utils import validate_repo_id

    with _refusals(f"push to {printable(str(name))}"):
        validate_repo_id(name or "")  # it lets None pass


def upload(
    folder: Path,
    name: str,
    mark: str,
    free: tuple[str, ...],
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a model with mmfusion",
) -> str:
    """Put an exported model's folder into a repository, in one commit; returns its address.

    The repository and the branch `revision` are made if they are not there. What the manifest
    there lists and the new one does not goes; what else lies there stays, and so do those of the
    files `free` (names) that somebody has written or edited.

    Raises:
        UserError: the hub refuses, or the repository holds `mark` of another project.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token, library_name="mmfusion")
    with _refusals(f"push to {name}: the hub did not take it"):
        repo = api.create_repo(name, private=private, exist_ok=True).repo_id
        if revision and not revision.startswith("refs/"):
            api.create_branch(repo, branch=revision, exist_ok=True)
        there = {*api.list_repo_files(repo, revision=revision)}
        small = [file for file in (mark, MANIFEST, *free) if file in there]
        with TemporaryDirectory() as temporary:
            for file in small:
                api.hf_hub_download(repo, file, revision=revision, local_dir=temporary)
            old = listed(Path(temporary))
            theirs = {file for file in small if file in free and edited(Path(temporary), file)}
        if mark in there and mark not in old:
            raise UserError(f"{repo}: holds a {mark} of another project; give another name")
        files = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
        gone = (old.keys() & there) - files.keys() - theirs
        operations: list[Any] = [
            *(CommitOperationAdd(file, files[file]) for file in sorted(files.keys() - theirs)),
            *(CommitOperationDelete(file) for file in sorted(gone)),
        ]
        done = api.create_commit(repo, operations, commit_message=commit_message, revision=revision)
    return str(done.commit_url)


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Whatever the hub's client raises, in one line: its many errors all mean that it failed."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        response = getattr(error, "response", None)
        told = first_line(error)
        if response is not None:  # the second line of such errors says why
            told = " ".join([line for line in str(error).splitlines() if line.strip()][:2])
        remedy = f"; {LOGIN}" if getattr(response, "status_code", 0) in (401, 403) else ""
        raise UserError(f"{what} ({told}){remedy}") from None
