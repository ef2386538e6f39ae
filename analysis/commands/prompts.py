"""The commands `audiolens prompts list` and `audiolens prompts build`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer

from analysis.commands.common import Force, Json, print_table, say, to_json
from audiolens.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Show (`list`) the bundled prompt sets, or `build` one from captions of music.",
)


@app.command("list")
def prompts_list(
    vocabulary: Annotated[str, typer.Option(help="Vocabulary of the sets: english or etude.")] = "english",
    as_json: Json = False,
) -> None:
    """List the bundled concepts, and how well length, single words or other concepts tell their poles apart.

    Example:

        audiolens prompts list --vocabulary etude
    """
    from audiolens.prompts.leakage import bundled, summary

    rows = [summary(sets) for sets in bundled(vocabulary).values()]
    if as_json:
        say(to_json(rows))
        return
    print_table(rows)


@app.command("build")
def prompts_build(
    captions: Annotated[Path, typer.Argument(help="A .csv file with a header, or a text file of captions.")],
    words: Annotated[
        str, typer.Option(help="The words for the two poles: fast,slow or, with synonyms, fast/quick,slow/leisurely.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Prompt file to write (.toml or .json).")],
    column: Annotated[
        str | None, typer.Option(help="Column of the CSV file [default: caption, or the only one].")
    ] = None,
    concept: Annotated[
        str | None, typer.Option(help="Name of the concept [default: the bundled one that the words name].")
    ] = None,
    kind: Annotated[
        Literal["adjective", "noun"],
        typer.Option(help="adjective exchanges also faster and slowly, and noun also plurals."),
    ] = "adjective",
    avoid: Annotated[
        str | None,
        typer.Option(
            help="Concepts or words that no caption may name, separated by commas, or none [default: the concept's own "
            "words, and those of related concepts]."
        ),
    ] = None,
    most_words: Annotated[int, typer.Option("--most-words", help="Largest number of words in a caption.")] = 60,
    pairs: Annotated[int | None, typer.Option(help="Largest number of pairs [default: all].")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make matched prompts from captions of music, by exchanging the words for the two poles of a concept.

    Writes the prompt file and, beside it, a table of the captions that were rejected, with the reason.

    Examples:

        audiolens prompts build musiccaps.csv --words fast/quick,slow/leisurely -o tempo.toml

        audiolens prompts build captions.txt --words piano,guitar --kind noun -o piano.toml
    """
    from analysis.spreadsheets import write_csv
    from analysis.store import folder
    from audiolens.files.atomic import written
    from audiolens.prompts import counterfactuals

    if out.suffix.lower() not in (".toml", ".json"):
        raise InputError(f"--out {out}: expected the name of a .toml or .json file.")
    table = out.with_name(f"{out.stem}.rejected.csv")
    for file in (out, table):
        folder.check_file(file, overwrite=force)
    found = counterfactuals(
        captions, _sides(words), column=column, concept=concept, kind=kind, avoid=_avoided(avoid),
        most_words=most_words, n_pairs=pairs,
    )  # fmt: skip
    # Both files appear, or neither.
    with written(out) as prompts_aside, written(table) as table_aside:
        found.sets.save(prompts_aside)
        write_csv(found.to_frame(), table_aside)
    reasons = Counter(one.reason for one in found.rejected)
    if as_json:
        sources = Counter(found.sources)
        say(to_json({"file": str(out), "rejected_file": str(table), "concept": found.sets.concept,
                     "poles": found.sets.poles, "pairs": len(found.sources), "sources": sources,
                     "rejected": reasons, "avoided": found.avoided, "leaks": found.sets.balance().leaks}))  # fmt: skip
        return
    say(f"{out}: {found!r}")
    if found.rejected:
        say(f"{table}: the {len(found.rejected)} captions that were rejected, with the reasons")
    for leak in found.sets.balance().leaks:
        say(f"audiolens: {leak}; give synonyms with --words fast/quick,slow/leisurely to avoid this.", err=True)


def _sides(words: str) -> tuple[list[str], list[str]]:
    sides = [[word.strip() for word in side.split("/") if word.strip()] for side in words.split(",")]
    if len(sides) != 2 or not all(sides):
        raise InputError(f"--words {words}: expected two words with a comma between them, the positive pole first.")
    return sides[0], sides[1]


def _avoided(avoid: str | None) -> list[str] | None:
    if avoid is None:
        return None
    return [] if avoid == "none" else [name.strip() for name in avoid.split(",") if name.strip()]
