"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Option(help="hub id or folder of a checkpoint")]
Adapter = Annotated[Path | None, typer.Option(help="folder of a peft adapter trained with DynImg")]
Options = Annotated[
    list[str] | None, typer.Option("--option", "-O", help="a DynImgConfig field, e.g. -O fusion=after; may be repeated")
]
LoraAlpha = Annotated[float | None, typer.Option(help="another strength of LoRA than in training")]


def pairs(options: list[str]) -> dict[str, Any]:
    """["num_images=1", "rope_4d=false"] -> {"num_images": 1, "rope_4d": False}; "keep=0.4" gives a float"""
    words: dict[str, Any] = {"true": True, "false": False}
    found: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"option {option!r} is not of the form name=value")
        found[name] = words.get(value.lower(), _number(value))
    return found


def new_folder(folder: Path) -> Path:
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder")
    return folder


def _number(value: str) -> int | float | str:
    """ "4" -> 4, "0.4" -> 0.4; any other text as it is."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
