"""Measure the bundled English prompt sets from their texts alone: `python benchmarks/prompt_sets.py [--update]`.

With `--update` the table replaces the one in docs/prompts.md.
"""

from pathlib import Path
from typing import Annotated

import typer
from pages import renewed

from audiolens.prompts.leakage import bundled, summary

PAGE = Path(__file__).parent.parent / "docs" / "prompts.md"


def table() -> str:
    """The table in Markdown, with one row for every concept."""
    rows = [summary(sets) for sets in bundled("english").values()]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main(update: Annotated[bool, typer.Option(help=f"Write the table into docs/{PAGE.name}.")] = False) -> None:
    """Print the table, and update the page if asked."""
    print(table())
    if update:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "sets", table()), "utf-8")


if __name__ == "__main__":
    typer.run(main)
