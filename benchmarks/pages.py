"""Insert the benchmarks' tables into documentation pages, between two marks, and round the numbers stored with them."""

import json
import re
from typing import Any

DIGITS = 6


def renewed(page: str, mark: str, text: str) -> str:
    """The page with the text between `<!-- MARK:begin -->` and `<!-- MARK:end -->` replaced.

    Raises:
        ValueError: if the page does not contain both marks exactly once.
    """
    marks = rf"(<!-- {mark}:begin -->\n).*?(<!-- {mark}:end -->)"
    found, n = re.subn(marks, lambda match: match[1] + text + match[2], page, flags=re.DOTALL)
    if n != 1:
        raise ValueError(
            f"no place for the table: expected <!-- {mark}:begin --> and <!-- {mark}:end -->, exactly once"
        )
    return found


def rounded(values: Any) -> Any:
    """Values with few digits, to be stored: the last ones mean nothing, and would change with every machine."""
    return json.loads(json.dumps(values), parse_float=lambda text: float(f"{float(text):.{DIGITS}g}"))
