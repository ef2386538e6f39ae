"""Upload the folder of a finished study to the Hugging Face hub, and download it again."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from analysis.store import folder as folders
from analysis.study import finished
from analysis.study.result import Study
from analysis.study.stages import BEGUN, MADE, STAGES, SUMMARY
from audiolens.directions.card import plain
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.files import hub
from audiolens.files.atomic import as_path, refuse_links

_CARD = "README.md"


@guarded
def push_to_hub(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Add a study",
    only: str | None = None,
) -> str:
    """Upload the folder of a finished study as a dataset repository, with a card that states what it found.

    Other files in the repository are deleted in the same commit. The files state the name under which the model was
    opened; for a local model, this is the path of its folder.

    Args:
        folder: the folder that `study.run` filled. It is read and checked first.
        repo_id: "user/name", which is created if it does not exist.
        private: whether a new repository is private [default: the account's own default].
        token: an access token [default: that of `hf auth login`, or `HF_TOKEN`].
        message: the title of the commit.
        only: the `repr` of the study that the folder must contain [default: any study].

    Returns:
        The address of the repository.

    Raises:
        InputError: if the folder contains no finished study, a file of it is damaged, or the hub refuses the upload.
    """
    place = as_path(folder)
    found = finished.load_folder(place)
    if only is not None and repr(found) != only:
        raise InputError(f"{place} contains another study ({found.finding}): give the folder of this one.")
    refuse_links(place)
    files: dict[str, bytes | Path] = {
        path.relative_to(place).as_posix(): path
        for path in sorted(place.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(place).parts)
    }
    files[_CARD] = card(found, repo_id).encode()
    return hub.push(repo_id, files, kind="dataset", message=message, private=private, token=token, alone=True)


@guarded
def from_hub(
    repo_id: str, out: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
) -> Study:
    """Download a study into a new folder, and load it.

    Only the stages are kept, which are checked against their hashes. The page, its figures and its tables are drawn
    again from them, because a page from elsewhere could contain anything. If the study was made with other versions of
    the packages, the folder has no page.

    Raises:
        InputError: if the folder exists and is not empty, if there is no such repository or revision, or if what was
            downloaded is no study or is damaged. In these cases, no folder is left.
    """
    with folders.fresh(out, overwrite=None) as work, tempfile.TemporaryDirectory() as pulled:
        there = hub.fetch_folder(repo_id, Path(pulled), kind="dataset", revision=revision, token=token)
        refuse_links(there)
        for name in (SUMMARY, BEGUN, MADE, STAGES):
            # What is missing is named when the study is loaded.
            with suppress(FileNotFoundError):
                shutil.move(there / name, work / name)
        return finished.load_and_draw(work)


def card(study: Study, repo_id: str) -> str:
    """Return the card as Markdown, with metadata for the hub."""
    return "\n".join(
        [
            "---", "library_name: audiolens", "tags:", "- activation-steering", "- music-generation", "---", "",
            f"# Steering {plain(study.concept)} on {plain(study.model)}", "",
            f"**{plain(study.finding)}**", "", plain(study.qualification), "",
            "`index.html` is the study's page. The study can be read, compared and drawn again with "
            "[audiolens](https://pypi.org/project/audiolens/):", "",
            "```bash", f"audiolens hub pull {repo_id} -o study", "audiolens report study",
            "audiolens compare study another-study", "```", "",
            "The study does not show that the direction is the concept, only that it separates these prompts and "
            "changes this measure on this model.", "",
        ]
    )  # fmt: skip
