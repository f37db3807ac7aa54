"""What is wrong with a command line, in one line; typer would draw a box over several."""

from difflib import get_close_matches
from typing import Any

import typer

UsageError: Any = typer.BadParameter.__base__
"""Raised for a command line that cannot be read; typer has no public name for it."""
MOST = 3  # suggestions


def told(error: Any) -> str | None:
    """What is wrong, and the remedy; nothing where typer has shown the help in its place."""
    said = " ".join(error.format_message().split()).rstrip(".").replace("Value error, ", "")
    if type(error).__name__ == "NoArgsIsHelpError":  # by its name, as typer itself asks
        return None
    context, said = error.ctx, said[:1].lower() + said[1:]
    if context is None:
        return said
    root = context.find_root().command_path
    where = context.command_path.removeprefix(root).strip()
    see = f"; see {' '.join(['mmfusion', *where.split()])} --help"
    if hasattr(error, "possibilities"):  # of an option that there is not
        near = _near(error.option_name, context.command)
        remedy = f"; did you mean {' or '.join(near)}?" if near else see
        said = f"no option {error.option_name}{remedy}"
    elif not said.endswith("?"):
        said += see
    return f"{where}: {said}" if where else said


def _near(given: str, command: Any) -> list[str]:
    """What a command takes that is named like an option which it does not have."""
    known = _elsewhere(command)
    for name in (name for each in command.params for name in each.opts):
        if name.startswith("--"):
            known[_plain(name)] = name
    given = _plain(given)
    if given in known:
        return [known[given]]
    within = [name for name in known if given in name.split("_")]
    return [known[name] for name in (within or get_close_matches(given, known, 1, 0.7))[:MOST]]


def _elsewhere(command: Any) -> dict[str, str]:
    """What is no option of a command, but something else that it takes, by its name."""
    from mmfusion.config import Config, Sampling
    from mmfusion.config.section import dotted, keys
    from mmfusion.generation.arguments import SAME

    taken = {name for each in command.params for name in (each.name, *each.opts)}
    found: dict[str, str] = {}
    if "--set" in taken:
        found = {name: f"--set {name}=..." for name in Sampling.model_fields}
        found |= {theirs: found[own] for theirs, own in SAME.items()}
    if "overrides" in taken:
        for key in (key for key in keys(Config) if key[0] != "evaluation"):
            found.setdefault(str(key[-1]), f"{dotted(key)}=...")
            found[dotted(key)] = f"{dotted(key)}=..."
    return found


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_")
