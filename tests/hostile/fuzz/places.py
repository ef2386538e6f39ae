"""Mutations of a folder: files removed, exchanged or added, and links, pipes or folders in place of files."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

from hostile.fuzz.mutations import PICKLE
from hostile.fuzz.trees import Special, Tree

_CODE = b"import os\nos.system('touch fuzz-ran')\nopen('fuzz-ran', 'w')\nclass Own: pass\n"
_ADDED = {
    "own.py": _CODE, "modeling.py": _CODE, "pytorch_model.bin": PICKLE, "training_args.bin": PICKLE,
    "adapter_config.json": b'{"base_model_name_or_path": "../canary", "auto_map": {"AutoModel": "own.Own"}}',
    "sitecustomize.py": _CODE, "conftest.py": _CODE, "x/../../y": b"out", "chat_template.jinja": b"{{ 7 * 7 }}",
}  # fmt: skip


def moved(tree: Tree, rng: random.Random, canary: str, others: Sequence[Tree]) -> Tree:
    """A tree with one entry replaced, removed or added; `canary` is a folder that must remain untouched."""
    name = rng.choice(list(tree))
    content = tree[name]
    held = content if isinstance(content, bytes) else b""
    folders = [folder for folder in {os.path.dirname(one) for one in tree} if folder]
    kind = rng.randrange(12)
    if kind == 0:
        return {one: other for one, other in tree.items() if one != name}
    if kind == 1 and folders:
        # A file in place of a folder.
        folder = rng.choice(sorted(folders))
        return {folder: rng.choice((b"", held, Special("pipe"), Special("link", canary))), **tree}
    if kind == 2:
        other = rng.choice(others)
        return {**tree, name: other[rng.choice(list(other))]}
    if kind == 3:
        return {**tree, name: tree[rng.choice(list(tree))]}
    if kind == 4:
        extra = rng.choice(list(_ADDED))
        return {**tree, extra: _ADDED[extra]} if ".." not in extra else {**tree, extra.replace("..", "z"): b""}
    specials = (
        Special("folder"), Special("pipe"), Special("link", canary), Special("link", f"{canary}/x"),
        Special("link", "/dev/zero"), Special("link", name.rpartition("/")[2]), Special("link", "nowhere"),
        Special("sparse", head=held[: rng.choice((0, 8, len(held)))]), Special("link", f"{canary}/large"),
    )  # fmt: skip
    return {**tree, name: rng.choice(specials)}
