"""Tables that benchmarks write into the documentation, each between two marks of its page."""

import re
from pathlib import Path


def renew(page: Path, mark: str, text: str) -> None:
    """Put `text` between `<!-- MARK:begin -->` and `<!-- MARK:end -->` of a page.

    Raises:
        ValueError: if the page does not hold both marks, once.
    """
    marks = rf"(<!-- {mark}:begin -->\n).*?(<!-- {mark}:end -->)"
    renewed, n = re.subn(marks, lambda found: found[1] + text + found[2], page.read_text("utf-8"), flags=re.S)
    if n != 1:
        raise ValueError(f"{page}: expected <!-- {mark}:begin --> and <!-- {mark}:end -->, once")
    page.write_text(renewed, "utf-8")
