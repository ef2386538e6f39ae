"""A trace runs the source of the block that enters it, even if the file was edited in the meantime."""

import importlib
import linecache
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from audiolens import errors

BLOCK = """import nnsight
{above}

def read(lens):
    with lens.trace("calm"):
        found = nnsight.save({value})
    return found


def apart(lens):
    with lens.trace() as tracer:
        with tracer.invoke("calm"):
            first = nnsight.save({value})
        with tracer.invoke("fast"):
            second = nnsight.save(-{value})
    return first, second


def made_within(lens):
    with lens.trace() as tracer:
        found = nnsight.save([])

        def add(prompt):
            with tracer.invoke(prompt):
                found.append({value})

        add("calm")
        add("fast")
    return found
"""


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes a compiled file for that of an edit of the same second and size."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


def write(path: Path, value: int, above: str = "") -> None:
    path.write_text(BLOCK.format(value=value, above=above))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    path = tmp_path / "blocks_of_mine.py"
    write(path, 1)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("blocks_of_mine")
    del sys.modules["blocks_of_mine"]


def path_of(module: ModuleType) -> Path:
    assert module.__file__ is not None
    return Path(module.__file__)


@pytest.mark.parametrize("above", ["", "\n\nLINES = 3\n"])
def test_a_reloaded_file_runs_its_new_blocks(lens: Any, module: ModuleType, above: str) -> None:
    assert (module.read(lens), module.apart(lens), module.made_within(lens)) == (1, (1, -1), [1, 1])
    old = module.read
    for value in (2, 33):
        write(path_of(module), value, above)
        importlib.reload(module)
        assert (module.read(lens), module.apart(lens)) == (value, (value, -value))
        assert module.made_within(lens) == [value, value]
        # A function of before the edit is still what it was.
        assert old(lens) == 1
        assert module.read(lens) == value


def test_a_file_edited_and_not_reloaded_runs_what_was_loaded(lens: Any, module: ModuleType) -> None:
    assert module.read(lens) == 1
    write(path_of(module), 2, "\n# Two\n# lines.\n")
    assert (module.read(lens), module.apart(lens)) == (1, (1, -1))


@pytest.mark.parametrize("above", ["", "\n\nLINES = 3\n"])
def test_a_block_whose_text_is_gone_is_refused(lens: Any, module: ModuleType, above: str) -> None:
    write(path_of(module), 2, above)
    with pytest.raises(errors.StaleSourceError, match=r"blocks_of_mine\.py has changed .* reload"):
        module.read(lens)
    importlib.reload(module)
    assert module.read(lens) == 2


def test_a_script_run_again_runs_its_new_blocks(lens: Any, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    for value in (1, 2, 33):
        write(path, value, above=f"VALUE = {value}\n" * value)
        assert runpy.run_path(str(path))["read"](lens) == value


def test_generated_code_under_one_name_runs_its_own_blocks(lens: Any) -> None:
    name = "<a cell>"
    for value in (1, 2, 33):
        text = BLOCK.format(value=value, above="")
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        space: dict[str, Any] = {}
        exec(compile(text, name, "exec"), space)
        assert (space["read"](lens), space["apart"](lens)) == (value, (value, -value))


def test_code_without_a_text_of_its_own_is_refused(checkpoint: Path) -> None:
    program = f"""
import audiolens as al, nnsight
lens = al.AudioLens.from_pretrained({str(checkpoint)!r})
inner = '''
def read(lens):
    if True:
        with lens.trace("calm"):
            found = nnsight.save(2)
    return found
'''
space = {{"nnsight": nnsight}}
exec(compile(inner, "<string>", "exec"), space)
try:
    print(space["read"](lens))
except al.errors.StaleSourceError:
    print("refused")
with lens.trace("calm"):
    found = nnsight.save(1)
print(found)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["refused", "1"]
