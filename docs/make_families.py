"""Write docs/families.md from the families' own files: python docs/make_families.py"""

from pathlib import Path

from dynimg_plugin.family_table import FamilyRow, family_rows

HERE = Path(__file__).parent
TRIED = ("transformers", "torch", "timm")
COLUMNS = ("family", "model", "language model", "DynImgs enter at", "tokens per DynImg", "rotary embedding", "notes")


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
    return [row.family, *names, row.tokens, row.rope, row.notes]


if __name__ == "__main__":
    (HERE / "families.md").write_text(page(), "utf-8")
