"""A benchmark updates its own table of a page and nothing else."""

from pathlib import Path

import pytest
from pages import renewed

ROOT = Path(__file__).parents[2]
TABLES = {
    "docs/evidence.md": ["evidence"],
    "audiolens/etude/weights/README.md": ["evidence", "ablation"],
    "docs/measures.md": ["calibration"],
    "docs/placement.md": ["concepts", "rules"],
    "docs/checkpoints.md": ["sizes", "times"],
    "docs/claims.md": ["claims", "head"],
    "docs/methods.md": ["methods", "methods-replicate"],
    "docs/control.md": ["control"],
    "docs/ears.md": ["ears"],
    "docs/selectivity.md": ["selectivity"],
    "docs/steering.md": ["heads"],
    "docs/paper.md": ["paper"],
    "docs/versions.md": ["versions"],
}


def test_only_the_place_between_the_marks_is_renewed() -> None:
    page = "before\n<!-- sizes:begin -->\nold\n<!-- sizes:end -->\nafter"
    assert renewed(page, "sizes", "new \\1\n") == page.replace("old", "new \\1")
    for without in ("nothing here", page.replace("end", "ende"), page + page):
        with pytest.raises(ValueError, match="no place for the table: expected <!-- sizes:begin -->"):
            renewed(without, "sizes", "new")


@pytest.mark.parametrize(("page", "mark"), [(page, mark) for page, marks in TABLES.items() for mark in marks])
def test_every_page_has_a_place_for_its_tables(page: str, mark: str) -> None:
    assert f"<!-- {mark}:begin -->\nx\n<!-- {mark}:end -->" in renewed((ROOT / page).read_text("utf-8"), mark, "x\n")
