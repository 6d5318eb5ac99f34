"""What suggest_patch() found, and the Python source of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from types import FunctionType
from typing import Any

from dynimg_plugin.families import Patch
from dynimg_plugin.placeholders import Placeholders

DEFAULTS = (Patch(model_type=""), Placeholders())


@dataclass(frozen=True)
class Suggestion:
    """A Patch that a model was tried with; str() is a ready file for it."""

    patch: Patch
    alike: str
    model: str

    def __str__(self) -> str:
        imports: dict[str, set[str]] = {"dynimg_plugin.families": {"Patch"}}
        written = _source(self.patch, imports, "\n    ")
        lines = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(imports.items())]
        title = f'"""{self.model}: found by `dynimg suggest`; encodes pictures as {self.alike} does."""'
        return "\n".join([title, "", *lines, "", f"PATCH = {written}", ""])


def _source(value: Any, imports: dict[str, set[str]], indent: str = "") -> str:
    """Python source of a Patch and what it holds; fields at their defaults are left out."""
    if not callable(value) and not isinstance(value, Patch | Placeholders):
        return json.dumps(value) if isinstance(value, str) else repr(value)
    kind = value if isinstance(value, FunctionType) else type(value)
    imports.setdefault(kind.__module__, set()).add(kind.__name__)
    if kind is value:
        return kind.__name__
    defaults = next((known for known in DEFAULTS if type(known) is kind), None)
    shown = [f.name for f in fields(value) if defaults is None or getattr(value, f.name) != getattr(defaults, f.name)]
    deeper = indent and indent + "    "
    arguments = [f"{name}={_source(getattr(value, name), imports, deeper)}" for name in shown]
    if not (indent and defaults):
        return f"{kind.__name__}({', '.join(arguments)})"
    return f"{kind.__name__}({''.join(f'{indent}{argument},' for argument in arguments)}{indent[:-4]})"
