"""DynImg (arXiv 2507.15569) for existing video language models. Public names load on first use (PEP 562)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "CoordinateTable": "coordinates",
    "DynImg": "composition",
    "DynImgConfig": "config",
    "DynImgLayout": "layout",
    "DynImgProcessor": "processing",
    "DynImgRotaryEmbedding": "rope",
    "Patch": "patching",
    "VideoError": "video.errors",
    "apply_dynimg": "patching",
    "compose": "composition",
    "describe_dynimg": "patching",
    "load": "loading",
    "remove_dynimg": "patching",
    "suggest_patch": "suggest",
    "supported_families": "patching",
}

__all__ = [*sorted(_HOMES)]

if TYPE_CHECKING:
    from dynimg_plugin.composition import DynImg, compose
    from dynimg_plugin.config import DynImgConfig
    from dynimg_plugin.coordinates import CoordinateTable
    from dynimg_plugin.layout import DynImgLayout
    from dynimg_plugin.loading import load
    from dynimg_plugin.patching import Patch, apply_dynimg, describe_dynimg, remove_dynimg, supported_families
    from dynimg_plugin.processing import DynImgProcessor
    from dynimg_plugin.rope import DynImgRotaryEmbedding
    from dynimg_plugin.suggest import suggest_patch
    from dynimg_plugin.video.errors import VideoError


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dynimg_plugin' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"dynimg_plugin.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
