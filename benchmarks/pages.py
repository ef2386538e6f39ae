"""Tables that benchmarks write into the documentation, each between two marks of its page."""

import re


def renewed(page: str, mark: str, text: str) -> str:
    """The page with `text` between `<!-- MARK:begin -->` and `<!-- MARK:end -->`.

    Raises:
        ValueError: if the page does not hold both marks, once.
    """
    marks = rf"(<!-- {mark}:begin -->\n).*?(<!-- {mark}:end -->)"
    found, n = re.subn(marks, lambda match: match[1] + text + match[2], page, flags=re.DOTALL)
    if n != 1:
        raise ValueError(f"no place for the table: expected <!-- {mark}:begin --> and <!-- {mark}:end -->, once")
    return found
