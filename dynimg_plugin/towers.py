"""fusion="tokens": prompt frames as further tokens of a ViT's own sequence, beside the key frame's (ours)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isqrt
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.families import Patch
from dynimg_plugin.layout import DynImgLayout

SLOTS = "prompt_slots"
Change = Callable[[Tensor], Tensor]


class Tower(Protocol):
    """What the kinds of tower differ in; `grid` patches a side, `width` channels, `depth` layers."""

    grid: int
    width: int
    depth: int

    def embed(self, pixels: Tensor) -> Tensor:
        """Patch embeddings without positions, (m, 3, H, W) -> (m, h, w, c)."""

    def positions(self) -> Tensor:
        """Position embeddings of the patches, (grid * grid, c)."""

    @contextmanager
    def entering(self, change: Change, rows: int) -> Iterator[None]:
        """Meanwhile the sequence of a forward is change(sequence), where it enters the layers: `rows` of patches."""


class HuggingFaceTower:
    """SigLIP's and CLIP's towers of transformers."""

    def __init__(self, tower: Any) -> None:
        tower = getattr(tower, "vision_model", tower)  # transformers below 5 nests it
        self.embeddings, self.depth = tower.embeddings, len(tower.encoder.layers)
        self.grid, self.width = isqrt(self.embeddings.num_patches), self.embeddings.embed_dim

    def embed(self, pixels: Tensor) -> Tensor:
        convolution = self.embeddings.patch_embedding
        return rearrange(convolution(pixels.to(convolution.weight.dtype)), "m c h w -> m h w c")

    def positions(self) -> Tensor:
        return self.embeddings.position_embedding.weight[-(self.grid**2) :]  # CLIP's first is the class token's

    @contextmanager
    def entering(self, change: Change, rows: int) -> Iterator[None]:
        # prepended: FSDP's own hook takes the gathered weights away again
        handle = self.embeddings.register_forward_hook(lambda *call: change(call[-1]), prepend=True)
        try:
            yield
        finally:
            handle.remove()


class TimmTower:
    """timm's VisionTransformer in transformers' wrapper."""

    def __init__(self, tower: Any) -> None:
        self.vit = tower.timm_model
        self.grid, self.width = self.vit.patch_embed.grid_size[0], self.vit.embed_dim
        self.depth = len(self.vit.blocks)

    def embed(self, pixels: Tensor) -> Tensor:
        patch_embed = self.vit.patch_embed
        patches = patch_embed.proj(pixels.to(patch_embed.proj.weight.dtype))
        return patch_embed.norm(rearrange(patches, "m c h w -> m h w c"))

    def positions(self) -> Tensor:
        return self.vit.pos_embed[0, -(self.grid**2) :]

    @contextmanager
    def entering(self, change: Change, rows: int) -> Iterator[None]:
        handle = self.vit.norm_pre.register_forward_pre_hook(lambda _, args: (change(args[0]),))
        # forward_intermediates() folds tokens back into a map of this size
        self.vit.patch_embed.__dict__["dynamic_feat_size"] = lambda size: (rows, self.grid)
        try:
            yield
        finally:
            handle.remove()
            del self.vit.patch_embed.__dict__["dynamic_feat_size"]


KINDS: dict[str, Callable[[Any], Tower]] = {
    "SiglipVisionModel": HuggingFaceTower,
    "CLIPVisionModel": HuggingFaceTower,
    "TimmWrapperModel": TimmTower,
}


def find_tower(core: Any, patch: Patch, grid: int) -> Tower:
    """The tower of a model's core, when prompt tokens can join its sequence.

    Args:
        grid: projected features per side, see Patch.tower().

    Raises:
        ValueError: a tower of another kind, or one whose patches do not reach the language model one by one.
    """
    try:
        module = core.get_submodule(patch.vision_tower)
    except AttributeError as error:
        raise ValueError(
            f"fusion='tokens' found no {patch.vision_tower!r} in {type(core).__name__}; name the path of its tower in "
            "Patch(vision_tower=...)"
        ) from error
    kind = _kind(module)
    reason = _reason(module, kind, grid) if kind else f"it is a tower of class {type(module).__name__}"
    if kind is None or reason:
        raise ValueError(
            f"fusion='tokens' cannot join the vision tower of {patch.model_type!r}: {reason}. Allowed: SigLIP and CLIP "
            "towers of transformers, and timm's VisionTransformer with position embeddings in transformers' wrapper, "
            "where every patch is projected alone, as in LLaVA; here take fusion='canvas', 'after' or 'none'"
        )
    return kind(module)


def _kind(tower: Any) -> Callable[[Any], Tower] | None:
    """By the names of its classes: FSDP makes a subclass of what it shards."""
    return next((KINDS[base.__name__] for base in type(tower).__mro__ if base.__name__ in KINDS), None)


def _reason(tower: Any, kind: Callable[[Any], Tower], grid: int) -> str:
    """Why prompt tokens cannot join a tower of a known kind; empty when they can."""
    if (vit := getattr(tower, "timm_model", None)) is not None:
        from timm.models.vision_transformer import VisionTransformer

        if not isinstance(vit, VisionTransformer):
            return f"it is timm's {type(vit).__name__}"
        if vit.pos_embed is None:
            return "it has no position embeddings"
    own = kind(tower).grid
    return "" if own == grid else f"its {own} x {own} patches are merged to {grid} x {grid} tokens"


class PromptSlots(nn.Module):
    """One learnable vector per prompt slot, added to all patches of its frame; zero at the start.

    Its forward is called through the module that the core holds, so that peft can put a trained copy in its place
    (modules_to_save=["prompt_slots"]).
    """

    frame_of_column: Tensor

    def __init__(self, layout: DynImgLayout, width: int, device: torch.device | None = None) -> None:
        super().__init__()
        prompts = layout.regions[1:]
        frames = [index for index, region in enumerate(prompts) for _ in range(region.patches.w)]
        self.slot_embedding = nn.Parameter(torch.zeros(len(prompts), width, device=device))
        self.register_buffer("frame_of_column", torch.tensor(frames, device=device), persistent=False)

    def forward(self, row: Tensor) -> Tensor:
        """(m, h, grid, c), the row of prompts -> the same with every column's slot vector."""
        return row + self.slot_embedding[self.frame_of_column].to(row.dtype)


def prompt_positions(positions: Tensor, layout: DynImgLayout) -> Tensor:
    """The tower's position embeddings (grid * grid, c), scaled down to each prompt frame: (h, grid, c).

    A frame of 7 x 7 patches shows what the key frame shows on 27 x 27, so its corners get the corners' embeddings;
    bicubic with antialiasing, in fp32.
    """
    whole = rearrange(positions.float(), "(h w) c -> 1 c h w", h=layout.grid)
    sizes = [(region.patches.h, region.patches.w) for region in layout.regions[1:]]
    scaled = {
        size: F.interpolate(whole, size, mode="bicubic", antialias=True, align_corners=False) for size in set(sizes)
    }
    return rearrange(torch.cat([scaled[size] for size in sizes], -1), "1 c h w -> h w c")


def encode_beside(core: Any, patch: Patch, config: DynImgConfig, layout: DynImgLayout, pixels: Tensor) -> Tensor:
    """Key frames and their rows of prompts in one sequence each, (m, 3, W + h, W) -> (m, rows * grid, c).

    With prompt_attention="apart" the two halves of the sequence are masked from one another. That is computed as two
    passes, which is what such a mask amounts to (each half with a class token of its own, where the tower has one), so
    the key frame's features are the plain tower's, bit for bit, on any device; one pass with a mask over the whole
    sequence rounds differently (1e-6 in fp32 under PyTorch's fused attention).

    Raises:
        ValueError: the tower's weights are offloaded.
    """
    key, row = pixels.split([pixels.shape[-1], pixels.shape[-2] - pixels.shape[-1]], dim=-2)
    tower, below = find_tower(core, patch, layout.grid), layout.rows - layout.grid
    if tower.positions().is_meta:
        raise ValueError(
            "fusion='tokens' reads the vision tower's weights outside of its forward, and they are offloaded; name a "
            f"device for the tower, {patch.vision_tower!r} of {type(core).__name__}, in device_map, or take "
            "fusion='canvas'"
        )
    joint = config.prompt_attention == "joint"

    def with_prompts(sequence: Tensor) -> Tensor:
        placed = tower.embed(row) + prompt_positions(tower.positions(), layout).to(sequence.dtype)
        prompts = getattr(core, SLOTS)(placed).flatten(1, 2)
        kept = sequence if joint else sequence[:, : -(layout.grid**2)]  # the class token, where there is one
        return torch.cat((kept, prompts.to(sequence.dtype)), 1)

    plain = [] if joint else [patch.encode(core, key)]
    with tower.entering(with_prompts, layout.rows if joint else below):
        return torch.cat([*plain, patch.encode(core, key)], 1)
