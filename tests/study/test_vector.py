"""Figures of a study: vector files in column widths, SVG in the page, and the tables behind the drawn points."""

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from plants import tables as planted

from analysis.figures.canvas import DOUBLE, SINGLE, canvas, in_column
from analysis.figures.style import styled
from analysis.report import vector, writer
from analysis.report.drawings import Drawing
from analysis.report.tables import by_prompt
from analysis.study import where
from audiolens.errors import InputError

HOSTILE = """</text><script>alert(1)</script> url(#x) id="y" #000000 font-family: z"""


def figure() -> Figure:
    with styled():
        made = canvas((9.0, 3.0))
        axes = made.add_subplot()
        axes.plot([1, 2], [3, 4], "o", color="black", markerfacecolor="white", label=HOSTILE)
        axes.legend()
    return made


def test_svg_in_a_page_keeps_text_and_takes_the_colours_and_the_font_of_the_page() -> None:
    content = vector.file_of(figure(), "svg", "one")
    assert content == vector.file_of(figure(), "svg", "one")
    shown = vector.inline(content, "one", "A 'figure' & more")
    root = ElementTree.fromstring(shown)
    assert (root.get("role"), root.get("aria-label")) == ("img", "A 'figure' & more")
    assert HOSTILE in [text.text for text in root.iter("text")]
    assert {element.tag for element in root.iter()}.isdisjoint({"script", "style", "a", "image"})
    attributes = " ".join(value for element in root.iter() for value in element.attrib.values())
    assert "font-family" not in attributes
    assert not re.search(r"#000000|#ffffff", attributes)
    assert "currentColor" in attributes
    assert "var(--paper)" in attributes
    ids = [name for element in root.iter() if (name := element.get("id")) is not None]
    used = {*re.findall(r"url\(#([^)]+)\)", attributes), *(e.get("href", "")[1:] for e in root.iter("use"))}
    assert ids
    assert used == {*ids}
    assert all(name.startswith("one-") for name in ids)


def test_figures_have_the_width_of_a_column() -> None:
    assert figure().get_figwidth() == 9
    with in_column(DOUBLE):
        assert figure().get_figwidth() == DOUBLE
        assert canvas((4.0, 3.0)).get_figwidth() == SINGLE
    with in_column(SINGLE):
        assert figure().get_figwidth() == SINGLE
    assert figure().get_figwidth() == 9


def test_captions_are_beside_the_figures_with_their_widths() -> None:
    drawn = Drawing("norms", "Norm", "The <b>norm</b> at each block.", Figure((SINGLE, 2)))
    text = writer.captions([drawn], writer.checked_kinds(["pdf", "svg"]))
    assert "norms.svg, norms.pdf (85 mm wide)\n\nThe &lt;b>norm&lt;/b> at each block." in text
    with pytest.raises(InputError, match="figures='jpg': expected some of svg, pdf, png"):
        writer.checked_kinds(["jpg"])


def test_the_point_of_a_prompt_is_the_median_over_its_seeds() -> None:
    study = planted.study()
    lost = (study.clips["kind"] == "steered") & (study.clips["seed"] == study.clips["seed"].max())
    study = replace(study, clips=study.clips.assign(failed=study.clips["failed"] | lost))
    clips = study.clips[study.clips["split"] == "test"]
    before = {(row.prompt, row.seed): row.tempo_ioi for row in clips.itertuples() if row.kind == "baseline"}
    found = by_prompt(study)
    for row in found.itertuples():
        same = clips[(clips["prompt"] == row.prompt) & (clips["kind"] == row.kind)]
        same = same[(same["pole"] == row.pole) if row.kind == "prompted" else (same["strength"] == row.strength)]
        each = [0.0 if one.failed else one.tempo_ioi / before[one.prompt, one.seed] - 1 for one in same.itertuples()]
        assert row.effect == pytest.approx(float(np.median(each)))
        assert row.seeds == len(each) == 4
    assert len(found) == 8 * (4 + 2)


def test_heads_and_words_are_read_back_and_may_be_missing(tmp_path: Path) -> None:
    found = planted.where()
    assert found.words is not None
    assert found.heads is not None
    for name, kept in (("new", found), ("old", replace(found, heads=None, words=None))):
        (tmp_path / name).mkdir()
        where.write(kept, tmp_path / name)
    again, old = where.read(tmp_path / "new"), where.read(tmp_path / "old")
    assert (old.heads, old.words) == (None, None)
    assert again.heads is not None
    assert again.words is not None
    assert again.heads.to_frame().equals(found.heads.to_frame())
    assert again.words.to_frame().equals(found.words.to_frame())
    table = found.words.to_frame()
    assert table.loc[table["layer"] == 5, "relative_weight"].tolist() == [3.0, 3.0, *[1.0] * 6]
    (tmp_path / "new" / "words.safetensors").write_bytes((tmp_path / "new" / "heads.safetensors").read_bytes())
    with pytest.raises(InputError, match="expected a grid of .* words, layers and heads"):
        where.read(tmp_path / "new")
