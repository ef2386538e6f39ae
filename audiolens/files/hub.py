"""Upload files to the Hugging Face hub, and download them. Every failure of the hub is one `InputError`.

`HF_ENDPOINT` selects another server, and `HF_HUB_OFFLINE=1` forbids the network, as everywhere in `huggingface_hub`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from audiolens.checks import checked_flags, checked_text, shown
from audiolens.errors import InputError, InputTypeError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Kind = Literal["model", "dataset"]
"""The kind of a repository: directions are stored like a model, and studies like a dataset."""
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def push(
    repo_id: str,
    files: Mapping[str, bytes | Path],
    *,
    kind: Kind,
    message: str,
    private: bool | None = None,
    token: str | None = None,
    alone: bool = False,
) -> str:
    """Upload files in one commit, after creating the repository if it does not exist, and return its address.

    Args:
        repo_id: "user/name".
        files: the contents or the path of each file, by its path in the repository.
        kind: the kind of the repository.
        message: the title of the commit.
        private: whether a new repository is private [default: the account's own default]. An existing one is unchanged.
        token: an access token [default: the one of `hf auth login`, or `HF_TOKEN`].
        alone: whether all other files of the repository are deleted in the same commit.

    Raises:
        InputError: if the name is not valid, the hub cannot be reached, or it refuses the upload.
    """
    if private is not None:
        checked_flags(private=private)
    if not checked_text("message", message).strip():
        raise InputError("message is empty: expected the title of the commit.")
    _check_token(token)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    with refused(repo_id, kind) as api:
        address = api.create_repo(repo_id, token=token, private=private, repo_type=kind, exist_ok=True)
        operations: list[Any] = [
            CommitOperationAdd(
                path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else str(content)
            )
            for name, content in files.items()
        ]
        if alone:
            there = api.list_repo_files(repo_id, repo_type=kind, token=token)
            operations += [CommitOperationDelete(name) for name in there if name not in {*files, ".gitattributes"}]
        api.create_commit(repo_id, operations, commit_message=message, token=token, repo_type=kind)
    return str(address)


def fetch(repo_id: str, filename: str, *, kind: Kind, revision: str | None = None, token: str | None = None) -> Path:
    """Download a file into the hub's cache, if it is not there yet, and return its path.

    Raises:
        InputError: if there is no such repository, revision or file, or the hub cannot be reached.
    """
    checked_text("filename", filename)
    _check_token(token)
    with refused(repo_id, kind, revision) as api:
        found = api.hf_hub_download(repo_id, filename, repo_type=kind, revision=revision, token=token)
    return Path(str(found))


def fetch_folder(
    repo_id: str, folder: Path, *, kind: Kind, revision: str | None = None, token: str | None = None
) -> Path:
    """Download a repository into a folder, as plain files.

    Raises:
        InputError: as in `fetch`.
    """
    _check_token(token)
    with refused(repo_id, kind, revision) as api:
        api.snapshot_download(repo_id, repo_type=kind, revision=revision, token=token, local_dir=folder)
    # The client keeps its records in a hidden folder, which is no part of what was uploaded.
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return folder


@contextmanager
def refused(repo_id: object, kind: Kind, revision: str | None = None) -> Iterator[HfApi]:
    """Yield the hub's client, and raise every error of the client or the network as an `InputError`.

    Raises:
        InputTypeError, InputError: if `repo_id` is not "user/name".
    """
    if not isinstance(repo_id, str):
        raise InputTypeError(f"repo_id={shown(repo_id)}: expected a text such as 'user/tempo'.")
    if not is_repository(repo_id):
        raise InputError(f"repo_id={shown(repo_id)}: expected a name such as 'user/tempo'.")
    from huggingface_hub import HfApi, errors

    # The client reads the variable only when it is imported.
    server = os.environ.get("HF_ENDPOINT") or None
    api = HfApi(endpoint=server)
    where = f"{shown(repo_id)} on {api.endpoint}"
    try:
        yield api
    except errors.HFValidationError as error:
        raise InputError(f"repo_id={shown(repo_id)}: {_line(error)}") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{where} has no revision {shown(revision or 'main')}.") from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"there is no {kind} {where}, or it is private: check the name, or log in (`hf auth login`, HF_TOKEN)."
        ) from None
    except errors.LocalEntryNotFoundError:
        raise InputError(f"{where} is not in the cache, and the hub cannot be reached: check the network.") from None
    except errors.EntryNotFoundError as error:
        raise InputError(f"{where} lacks a file: {_line(error)}") from None
    except (errors.LocalTokenNotFoundError, errors.GatedRepoError) as error:
        raise InputError(f"{where}: {_line(error)} Log in with `hf auth login`, or set HF_TOKEN.") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        remedy = " Log in with `hf auth login`, or set HF_TOKEN." if status in (401, 403) else ""
        raise InputError(f"{where} refused the request: {_line(error)}{remedy}") from None
    except Exception as error:
        if isinstance(error, ValueError):
            raise InputError(f"{where} cannot be used in this way: {_line(error)}") from None
        # The client's HTTP library, whose errors these are, differs between versions.
        if not isinstance(error, (errors.HfHubHTTPError.__bases__[0], ConnectionError)):
            raise
        raise InputError(f"{where} cannot be reached ({_line(error)}): check the network.") from None


def is_repository(name: str) -> bool:
    """Return whether a text has the form of a repository's name, "user/name"."""
    return _REPOSITORY.fullmatch(name) is not None


def _check_token(token: object) -> None:
    # The token is not repeated in the message.
    if token is not None and not isinstance(token, str):
        raise InputTypeError(f"token={type(token).__name__}: expected a text, or None.")


def _line(error: BaseException) -> str:
    """Return the message of an error as one short line."""
    text = " ".join(str(error).split())[:240] or type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."
