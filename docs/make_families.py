"""Write docs/families.md from the families' own files: python docs/make_families.py"""

from pathlib import Path
from typing import Any

from dynimg_plugin.attention import fusable
from dynimg_plugin.families import Patch, find_patch
from dynimg_plugin.family_table import FamilyRow, family_rows
from dynimg_plugin.rope import DynImgRotaryEmbedding
from dynimg_plugin.tiny import build_tiny
from dynimg_plugin.towers import find_tower

HERE = Path(__file__).parent
TRIED = ("transformers", "torch", "timm")
COLUMNS = (
    "family",
    "model",
    "language model",
    "DynImgs enter at",
    "tokens per DynImg",
    "rotary embedding",
    "native operator",
    "`fusion=tokens`",
    "notes",
)


def page() -> str:
    """The page as it should stand in the repository."""
    pins = (HERE.parent / "constraints.txt").read_text("utf-8").split()
    versions = [pin.replace("==", " ") for pin in pins if pin.split("==")[0] in TRIED]
    rows = [_cells(row) for row in family_rows()]
    return "\n".join(
        [
            "# Model families",
            "",
            f"Made by `python docs/make_families.py`; the tests of every row ran with {', '.join(sorted(versions))}.",
            "",
            *(f"| {' | '.join(cells)} |" for cells in [COLUMNS, ["---"] * len(COLUMNS), *rows]),
            "",
            "With M-RoPE our rotation lies on top of the family's own (time, row, column); that it helps is untested.",
            "SmolVLM's processor needs num2words and PerceptionLM's tower timm: `pip install num2words timm`.",
            "",
        ]
    )


def _cells(row: FamilyRow) -> list[str]:
    names = (f"`{name}`" for name in (row.model, row.language_model, row.entry))
    model, patch = build_tiny(row.family)[0], find_patch(row.family)
    return [row.family, *names, row.tokens, row.rope, _native(model, patch), _prompt_tokens(model, patch), row.notes]


def _prompt_tokens(model: Any, patch: Patch) -> str:
    """Whether prompt frames can join the sequence of the family's tower."""
    try:
        find_tower(model.get_submodule(patch.core), patch, patch.tower(model.config)[0])
    except ValueError:
        return "no"
    return "yes"


def _native(model: Any, patch: Patch) -> str:
    """Whether the attention layers of a tiny model of the family take the operator, or why they do not."""
    decoder = model.get_submodule(patch.core).get_submodule(patch.language_model)
    rotary = DynImgRotaryEmbedding(decoder.get_submodule(patch.rotary))
    _, reason = fusable(decoder.get_submodule(patch.layers), rotary)
    return f"no: {reason}" if reason else "yes"


if __name__ == "__main__":
    (HERE / "families.md").write_text(page(), "utf-8")
