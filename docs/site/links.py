"""Check the pages of the built site: every link leads to something, and nothing is loaded from elsewhere."""

import os
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The anchors of a page, what it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {name for key in ("id", "name") if (name := given.get(key))}
        if tag == "a" and (target := given.get("href")):
            self.links.append(target)
        elif target := given.get("src") or (given.get("href") if tag == "link" else None):
            self.loads.append(target)


def problems(site: Path) -> list[str]:
    """Links of built pages that lead nowhere, and whatever a page would load from elsewhere."""
    pages = {path.relative_to(site).as_posix(): _Page(path.read_text("utf-8")) for path in site.rglob("*.html")}
    found = []
    for name, page in pages.items():
        for target in {*page.links, *page.loads}:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loads and parts.scheme != "data":
                    found.append(f"{name} loads {target[:80]}: keep a copy, pages work without a network")
                continue
            place = name
            if parts.path:
                place = os.path.normpath(PurePosixPath(name).parent / unquote(parts.path))
            if not (site / place).is_file():
                found.append(f"{name}: no file {target}")
            elif parts.fragment and place in pages and unquote(parts.fragment) not in pages[place].anchors:
                found.append(f"{name}: no anchor {target}")
    return sorted(found)
