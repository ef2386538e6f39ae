"""Run the documentation's commands through the command line's own parser."""

from typing import Any


def parsed(command: Any, words: list[str]) -> None:
    """Arguments through the command's own parser, down to the subcommand; nothing is run."""
    context = command.make_context("audiolens", list(words), resilient_parsing=False)
    if hasattr(command, "resolve_command") and not (set(words) & {"--help"}):
        _, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        parsed(inner, rest)
