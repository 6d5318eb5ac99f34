"""Imports point one way, each third-party library has one door, and the public names are there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dynimg_plugin

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"compat", "config", "ops", "placeholders"},
    {"layout", "families", "rope", "hub"},
    {"suggestion", "original_processor"},
    {"video", "pooling", "attention", "budget", "mrope", "places", "towers"},
    {"composition", "coordinates"},
    {"visuals", "session", "preview"},
    {"processing", "overriding", "original"},
    {"patching"},
    {"tiny", "loading", "family_table", "suggest"},
    {"fitting", "assembling"},
    {"evaluation"},
    {"patches", "eval_tasks"},
    {"training"},
    {"demo", "doctor"},
    {"check"},
    {"cli_options"},
    {"cli_assembling", "cli_evaluation", "cli_judging", "cli_training"},
    {"cli"},
]
LEVEL = {room: level for level, layer in enumerate(LAYERS) for room in layer}
FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("dynimg_plugin", "patches", "eval_tasks")
    for path in (ROOT / folder).rglob("*.py")
    if path != ROOT / "dynimg_plugin" / "__init__.py"
)
DOORS = {
    "av": {"video", "doctor"},
    "lmms_eval": {"evaluation", "doctor"},
    "datasets": {"eval_tasks", "evaluation", "training"},
    "peft": {"loading", "training"},
    "timm": {"assembling", "towers"},
    "tokenizers": {"tiny"},
    "torchvision": {"composition", "doctor"},
    "trl": {"training"},
    "typer": {"cli", "cli_options", "cli_assembling", "cli_evaluation", "cli_judging", "cli_training"},
}


def room_of(path: Path) -> str:
    return path.parts[1].removesuffix(".py") if path.parts[0] == "dynimg_plugin" else path.parts[0]


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse((ROOT / path).read_text("utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path):
    room = room_of(path)
    others = {name.split(".")[1] for name in imported(path) if name.startswith("dynimg_plugin.")} - {room}
    upward = {other for other in others if LEVEL[other] >= LEVEL[room]}
    assert not upward, f"{room} imports {sorted(upward)}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_each_library_has_one_door(path):
    used = {name.split(".")[0] for name in imported(path)}
    for library, rooms in DOORS.items():
        assert library not in used or room_of(path) in rooms, f"{path} imports {library}; its door is {sorted(rooms)}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_stay_short(path):
    assert len((ROOT / path).read_text("utf-8").splitlines()) <= 300


@pytest.mark.parametrize("name", dynimg_plugin.__all__)
def test_every_public_name_loads_and_is_documented(name):
    assert getattr(dynimg_plugin, name).__doc__


def test_an_unknown_name_lists_the_public_ones():
    with pytest.raises(AttributeError, match="DynImgConfig"):
        dynimg_plugin.nonsense  # noqa: B018
