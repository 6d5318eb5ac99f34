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
SETS = ("constraints-oldest.txt", "constraints.txt")  # what `make test-oldest` and `make test` run with
COLUMNS = (
    "family",
    "model",
    "language model",
    "DynImgs enter at",
    "tokens per DynImg",
    "rotary embedding",
    "native operator",
    "transformers tried",
    "`fusion=tokens`",
    "notes",
)


def page() -> str:
    """The page as it should stand in the repository."""
    tried = ", ".join(_pin("transformers", name) for name in SETS)
    others = ", ".join(f"{name} {_pin(name, SETS[-1])}" for name in ("torch", "timm"))
    rows = [_cells(row, tried) for row in family_rows()]
    return "\n".join(
        [
            "# Model families",
            "",
            f"Made by `python docs/make_families.py`; the tests of every row ran with {others}.",
            "",
            *(f"| {' | '.join(cells)} |" for cells in [COLUMNS, ["---"] * len(COLUMNS), *rows]),
            "",
            "With M-RoPE our rotation lies on top of the family's own (time, row, column); that it helps is untested.",
            "In transformers 4 the attention of Qwen2-VL, Qwen2.5-VL and GLM-4.1V applies M-RoPE itself: the PyTorch",
            "path of 4D RoPE serves it in place of the native operator.",
            "SmolVLM's processor needs num2words and PerceptionLM's tower timm: `pip install num2words timm`.",
            "",
        ]
    )


def _pin(package: str, constraints: str) -> str:
    """The version of a package in a set of pins."""
    pins = (HERE.parent / constraints).read_text("utf-8").split()
    return next(pin.partition("==")[2] for pin in pins if pin.startswith(f"{package}=="))


def _cells(row: FamilyRow, tried: str) -> list[str]:
    names = (f"`{name}`" for name in (row.model, row.language_model, row.entry))
    model, patch = build_tiny(row.family)[0], find_patch(row.family)
    return [
        row.family,
        *names,
        row.tokens,
        row.rope,
        _native(model, patch),
        tried,
        _prompt_tokens(model, patch),
        row.notes,
    ]


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
