"""The help of every command has examples that its own parser takes."""

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from parsing import parsed

from analysis import cli

COMMAND = typer.main.get_command(cli.app)


def commands(command: Any = COMMAND, path: str = "audiolens") -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its words."""
    for name, inner in command.commands.items():
        if hasattr(inner, "commands"):
            yield from commands(inner, f"{path} {name}")
        else:
            yield f"{path} {name}", inner


@pytest.mark.parametrize(("path", "command"), [pytest.param(*one, id=one[0]) for one in commands()])
def test_a_command_has_examples_and_takes_them(path: str, command: Any) -> None:
    text, _, listed = (command.help or "").partition("Example")
    lines = [line.strip() for line in listed.splitlines() if line.strip().startswith("audiolens ")]
    assert text.strip()
    assert lines, f"{path} shows no example"
    assert listed.startswith("s:") is (len(lines) > 1)
    for line in lines:
        parsed(COMMAND, shlex.split(line.partition("  #")[0].partition(" > ")[0])[1:])
    # Reading directions is what `audiolens directions` does without a further word.
    assert any(line.startswith(path.removesuffix(" read")) for line in lines)
