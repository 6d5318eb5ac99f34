"""What the `llava` package misses in current releases of transformers, put back while you ask for it.

Three things break it there, each mended in the smallest way. The package's files are never touched:

    names that left transformers.modeling_utils        put back until undo()
    config.rope_scaling = None, which now wipes        ignored by the package's config classes until undo()
      all settings of the rotary embedding
    a tower's positions, computed ones, which          mend_positions(model), on that instance
      from_pretrained() now leaves as garbage
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from types import TracebackType
from typing import Any, Self

import torch
from transformers import PretrainedConfig, modeling_utils, pytorch_utils

MOVED = ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer")


@dataclass
class Shims:
    """What was put back; str() says it. undo(), or the end of a `with` block, takes it away again."""

    package: Any = None
    changes: list[tuple[Any, str]] = field(default_factory=list)  # (owner, name): absent before

    def __str__(self) -> str:
        names = [f"{getattr(owner, '__name__', owner)}.{name}" for owner, name in self.changes]
        return f"shims for the llava package: {', '.join(names) or 'none'}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.undo()

    def add(self, owner: Any, name: str, value: Any) -> None:
        """Give `owner` an attribute that it has not of its own."""
        if name not in vars(owner):
            setattr(owner, name, value)
            self.changes.append((owner, name))

    def undo(self) -> None:
        while self.changes:
            delattr(*self.changes.pop())

    def mend_positions(self, model: Any) -> list[str]:
        """Count position ids of the model's towers anew where loading left garbage; returns the modules mended."""
        mended = []
        for path, module in model.named_modules():
            ids = module._buffers.get("position_ids")
            right = None if ids is None else torch.arange(ids.shape[-1], device=ids.device).expand(ids.shape)
            if right is not None and not torch.equal(ids, right):
                module._buffers["position_ids"] = right.clone()
                mended.append(path)
        return mended


def llava_shims() -> Shims:
    """Make the installed `llava` package importable and import it; `print` what is returned to see what it took.

    Raises:
        ImportError: it is not installed, or misses something that is not mended here.
    """
    shims = Shims()
    for name in MOVED:
        if not hasattr(modeling_utils, name):
            shims.add(modeling_utils, name, getattr(pytorch_utils, name, _gone(name)))
    try:
        shims.package = import_module("llava")
        classes = import_module("llava.model")
    except ModuleNotFoundError as error:
        shims.undo()
        raise ImportError(
            f"{error}; the llava package comes with `pip install --no-deps llava-torch==1.2.2` (LLaVA-1.5), or "
            "`pip install --no-deps .` in a checkout of LLaVA-NeXT"
        ) from error
    except BaseException:  # old code fails in its own ways
        shims.undo()
        raise
    for value in vars(classes).values():
        if isinstance(value, type) and issubclass(value, PretrainedConfig):
            shims.add(value, "__setattr__", _keeping_rope(value))
    return shims


def _gone(name: str) -> Any:
    def gone(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"transformers has no {name}() any more; this part of the llava package cannot run")

    return gone


def _keeping_rope(config_class: type[PretrainedConfig]) -> Any:
    def set_attribute(self: Any, name: str, value: Any) -> None:
        if name != "rope_scaling" or value is not None:
            super(config_class, self).__setattr__(name, value)

    return set_attribute
