"""The documentation site: `make docs`.

The root of the repository is the source, so that a link between pages is the same here and on GitHub. The list of pages
in `docs/index.md` is the only navigation: a page that it does not name stops the build, as every other warning does.
"""

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

project = "audiolens"
author = copyright = "audiolens contributors"
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]

extensions = ["myst_nb", "sphinx_copybutton", "extensions"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md", "docs/reference/*.md", "notebooks/*.ipynb", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md",
    "audiolens/etude/weights/README.md", "etudes/*/README.md",
]  # fmt: skip
exclude_patterns = [".venv", "build", "runs", "out", "tests", ".*"]

# The notebooks are shown as they were run and committed.
nb_execution_mode = "off"
nb_output_stderr = "remove"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]

python_use_unqualified_type_names = True
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
add_module_names = False
highlight_language = "text"
pygments_dark_style = "github-dark"  # Furo's own underlines modules

html_theme = "furo"
html_title = "audiolens"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_theme_options = {
    f"{theme}_css_variables": {
        name: colour for name in ("color-brand-primary", "color-brand-content", "color-api-name", "color-api-pre-name")
    }
    for theme, colour in {"light": "#0B5C8A", "dark": "#6BB8E8"}.items()
}
