"""The table of model families, from their files: what `dynimg families` and the documentation show."""

from __future__ import annotations

from dataclasses import dataclass

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.families import Patch, built_in_families, family_module, find_patch, supported_families


@dataclass(frozen=True)
class FamilyRow:
    """What is said of one family; `tokens` is per DynImg, `notes` are those of built-in ones."""

    family: str
    model: str
    language_model: str
    entry: str
    tokens: str
    rope: str
    source: str
    notes: str


def family_rows() -> list[FamilyRow]:
    """One row per supported family, in alphabetical order."""
    return [_row(name) for name in supported_families()]


def _row(name: str) -> FamilyRow:
    patch, built_in = find_patch(name), name in built_in_families()
    return FamilyRow(
        family=name,
        model=MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(name, "-"),
        language_model=f"{patch.core}.{patch.language_model}",
        entry=f"{patch.core}.{patch.entry}",
        tokens=_tokens(patch),
        rope=patch.rope,
        source="built in" if built_in else "plug-in",
        notes=(family_module(name).__doc__ or "").strip() if built_in else "",
    )


def _tokens(patch: Patch) -> str:
    """Tokens of one DynImg of a released checkpoint, and the cells that they are pooled from."""
    side = DynImgConfig().pooled_size
    if max(patch.released) < side:
        side = min(patch.released)
    grids = " or ".join(f"{grid} x {grid}" for grid in patch.released)
    return f"{side**2}, " + ("its own grid" if patch.released == (side,) else f"pooled from {grids}")
