"""Write docs/cli.md and docs/config.md from the code; a test holds them to it."""

from pathlib import Path
from typing import Any, get_args

import click
from pydantic import BaseModel

from synthboot import config, schema
from synthboot.cli import main


def cli() -> str:
    """Every verb's help."""
    parts = ["# Command line\n\nWritten by `make docs` from the code.\n"]
    context = main.make_context("synthboot", [], resilient_parsing=True, max_content_width=100)
    for name in [None, *main.list_commands(context)]:
        command: Any = main if name is None else main.commands[name]
        inner = context if name is None else click.Context(command, info_name=name, parent=context, max_content_width=100)
        title = "synthboot" if name is None else f"synthboot {name}"
        parts.append(f"## {title}\n\n```text\n{command.get_help(inner)}\n```\n")
    return "\n".join(parts)


def settings() -> str:
    """Every setting with its default and its help text."""
    parts = ["# Settings\n\nWritten by `make docs` from `config.py`. No default: required.\n"]
    top = []
    for name, field in config.Config.model_fields.items():
        section = next((a for a in [field.annotation, *get_args(field.annotation)] if _is_section(a)), None)
        if section is None:
            top.append((name, field))
        else:
            title = f"{name}.NAME" if name == "arms" else name
            parts.append(f"## {title}\n\n{_plain(section.__doc__)}\n\n{_table(section.model_fields.items())}")
    parts.insert(1, f"## (top level)\n\n{_table(top)}")
    return "\n".join(parts)


def _is_section(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _table(fields: Any) -> str:
    rows = ["| setting | default | takes | |", "|---|---|---|---|"]
    for name, field in fields:
        default = "" if field.is_required() else f"`{field.default}`"
        rows.append(f"| `{name}` | {default} | {_plain(schema.takes(field))} | {_plain(field.description)} |")
    return "\n".join(rows) + "\n"


def _plain(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


PAGES = {"cli.md": cli, "config.md": settings}

if __name__ == "__main__":
    for page, make in PAGES.items():
        Path(__file__).with_name(page).write_text(make(), "utf-8")
