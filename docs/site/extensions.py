"""What the site adds to Sphinx: navigation from one list, the reference, players, links from code, a check of links."""

import re
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

from contents import contents
from docutils import nodes
from links import problems
from notebook_figures import SCRIPTS, for_page, has_figures, write_scripts
from reference import OTHER, PUBLIC, Reference, tree, write
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError

_REDIRECT = '<!doctype html><title>audiolens</title><meta http-equiv="refresh" content="0; url=docs/index.html">\n'


def navigation(text: str) -> str:
    """The front page with a table of contents for Sphinx from each of its lists."""
    trees = []
    for caption, pages in contents(text).items():
        trees.append(tree((f"{title} </{PurePosixPath(path).with_suffix('')}>" for title, path in pages), caption))
    return "\n\n".join([text, *trees])


def players(document: nodes.document, page: str) -> None:
    """Turn every link to a sound into its name with a player."""
    for link in list(document.findall(addnodes.download_reference)):
        stored = str(link.get("filename", ""))
        if stored.endswith(".ogg"):
            source = "../" * page.count("/") + f"_downloads/{stored}"
            name = escape(link.astext())
            player = f'<audio controls preload="none" src="{source}" aria-label="{name}"></audio>'
            link.replace_self(nodes.raw("", f'<span class="sound"><span>{name}</span>{player}</span>', format="html"))


def code_links(app: Sphinx, document: nodes.document, page: str, names: dict[str, str]) -> None:
    """Link inline code that is a public name, such as `lens.generate`, to its entry."""
    objects = app.env.domaindata["py"]["objects"]
    for code in list(document.findall(nodes.literal)):
        path = names.get(re.sub(r"\(.*", "", code.astext(), flags=re.DOTALL))
        if path is not None and not _linked(code):
            target = f"{app.builder.get_relative_uri(page, objects[path].docname)}#{objects[path].node_id}"
            code.replace_self(nodes.reference("", "", code.deepcopy(), internal=True, refuri=target))


def short_names(objects: dict[str, Any]) -> dict[str, str]:
    """The ways in which pages write a public name, with the path of its entry; what could be two is left out."""
    found: dict[str, set[str]] = {}
    for path, entry in objects.items():
        if entry.aliased:
            continue
        parts = path.split(".")
        ways = {path, path.replace("audiolens.", "al.", 1)}
        ways |= {".".join(parts[place:]) for place in range(1, len(parts) - 1)}
        if parts[-1][0].isupper() or "_" in parts[-1]:
            ways.add(parts[-1])
        ways |= {way.replace("AudioLens.", "lens.", 1) for way in ways if way.startswith("AudioLens.")}
        for way in ways:
            found.setdefault(way, set()).add(path)
    return {way: paths.pop() for way, paths in found.items() if len(paths) == 1}


def _linked(node: Any) -> bool:
    while node is not None:
        if isinstance(node, nodes.reference | nodes.title | addnodes.desc_signature | addnodes.pending_xref):
            return True
        node = node.parent
    return False


def finished(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.name != "html":
        return
    site = Path(app.outdir)
    (site / "index.html").write_text(_REDIRECT, "utf-8")
    if found := problems(site):
        raise ExtensionError("links of the built pages:\n" + "\n".join(found))


def figure_scripts(app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Let a page with interactive figures load what draws them."""
    if has_figures(context.get("body", "")):
        for name in SCRIPTS:
            app.add_js_file(name, loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    def listed(_: Sphinx, page: str, source: list[str]) -> None:
        if page == app.config.root_doc:
            source[0] = navigation(source[0])
        elif page == "docs/reference":
            source[0] += overview[0] + tree(f"/docs/reference/{name}" for name in (*PUBLIC, *OTHER))
        elif page.startswith("notebooks/"):
            source[0] = for_page(source[0])

    overview: list[str] = []
    names: dict[str, str] = {}

    def begun(app: Sphinx, _: Config) -> None:
        reference = Reference.read(Path(app.srcdir))
        overview.append(reference.overview())
        write(reference, Path(app.srcdir, "docs", "reference"))

    def prepared(app: Sphinx) -> None:
        if app.builder.name == "html":
            write_scripts(Path(app.outdir, "_static"))

    def named(_: Sphinx, env: BuildEnvironment) -> list[str]:
        names.update(short_names(env.domaindata["py"]["objects"]))
        return []

    def resolved(app: Sphinx, document: nodes.document, page: str) -> None:
        players(document, page)
        code_links(app, document, page, names)

    # Their text has parts that stand in no file.
    app.connect("env-get-outdated", lambda app, *_: [app.config.root_doc, "docs/reference"])
    app.connect("config-inited", begun)
    app.connect("builder-inited", prepared)
    app.connect("source-read", listed)
    app.connect("build-finished", finished)
    app.connect("env-updated", named)
    app.connect("html-page-context", figure_scripts)
    app.connect("doctree-resolved", resolved)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
