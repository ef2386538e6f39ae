"""The commands `audiolens hub push` and `audiolens hub pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.commands.common import say
from audiolens.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Upload (`push`) directions or a study to the Hugging Face hub, or `pull` them.",
)
SUFFIX = ".safetensors"


@app.command("push")
def hub_push(
    path: Annotated[Path, typer.Argument(help="A file of directions, or the folder of a finished study.")],
    repo: Annotated[str, typer.Argument(help="user/name on the hub, which is created if it does not exist.")],
    private: Annotated[
        bool | None, typer.Option(help="Whether a new repository is private [default: the account's own default].")
    ] = None,
) -> None:
    """Upload directions or a study, with a card that is written from what they record.

    Log in first with `hf auth login`, or set HF_TOKEN.

    Examples:

        audiolens hub push tempo.safetensors user/tempo --private

        audiolens hub push study-tempo user/study-tempo
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder.")
    if path.is_dir():
        from analysis.study.hub import push_to_hub

        say(push_to_hub(path, repo, private=private))
    else:
        from audiolens import Directions

        say(Directions.load(path).push_to_hub(repo, private=private))


@app.command("pull")
def hub_pull(
    repo: Annotated[str, typer.Argument(help="user/name on the hub.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help=f"New file of directions (NAME{SUFFIX}), or new folder of a study.")
    ],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit.")] = None,
) -> None:
    """Download directions to a file, or a study to a folder, and check what was downloaded.

    Examples:

        audiolens hub pull user/tempo -o tempo.safetensors

        audiolens hub pull user/study-tempo -o study-tempo
    """
    from analysis.store import folder as folders

    if out.suffix == SUFFIX:
        folders.check_file(out)
        from audiolens import Directions

        found = Directions.from_hub(repo, revision=revision)
        found.save(out)
        say(f"{found}\n\n{out} has the directions.")
    else:
        folders.check(out, overwrite=None)
        from analysis.study.hub import from_hub

        study = from_hub(repo, out, revision=revision)
        page = out / "index.html"
        shown = f"{page} has the page." if page.is_file() else f"{out} has no page: other versions made the study."
        say(f"{study.finding}\n{study.qualification}\n\n{shown}")
