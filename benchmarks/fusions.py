"""What the ways of fusion cost in the vision tower: features of one video's DynImgs, as multiples of the canvas.

    python benchmarks/fusions.py --quick                  # a tiny tower, and one DynImg on SigLIP so400m/14-384
    python benchmarks/fusions.py --json fusions.json      # 4 DynImgs on each; minutes

Weights are random, the sizes real. Before anything is timed: every way gives 144 tokens per DynImg, and with prompts
masked out (fusion="tokens", prompt_attention="apart") the key frame's features are those of fusion="none" bit for bit.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import LlavaOnevisionForConditionalGeneration

from dynimg_plugin import DynImgConfig, apply_dynimg, remove_dynimg
from dynimg_plugin.layout import DynImgLayout
from dynimg_plugin.tiny import build_tiny

WAYS: dict[str, dict[str, str]] = {
    "canvas": {"fusion": "canvas"},
    "none": {"fusion": "none"},
    "tokens": {"fusion": "tokens"},
    "tokens, apart": {"fusion": "tokens", "prompt_attention": "apart"},
    "after": {"fusion": "after"},
}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}


def build(real: bool) -> Any:
    """A LLaVA-OneVision whose language model is tiny; its tower is tiny too, or SigLIP's so400m/14 at 384 px."""
    model, _ = build_tiny("llava_onevision")
    if not real:
        return model
    config = model.config
    for name, value in {**SO400M, "image_size": 384, "patch_size": 14}.items():
        setattr(config.vision_config, name, value)
    torch.manual_seed(0)
    return LlavaOnevisionForConditionalGeneration(config).eval()


def draw(model: Any, config: DynImgConfig) -> torch.Tensor:
    """pixel_values of one video whose key frames are the same picture in every way but the canvas."""
    layout, tower = DynImgLayout.from_config(config.on_tower(grid=27, patch_size=1)), model.config.vision_config
    below, side = (layout.rows - layout.grid) * tower.patch_size, tower.image_size
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(1, config.num_images, 1, 3, side, side, generator=generator)
    row = torch.randn(1, config.num_images, 1, 3, below, side, generator=generator)
    return torch.cat((key, row), -2).expand(-1, -1, layout.num_canvases, -1, -1, -1).flatten(1, 2)


@torch.no_grad()
def features(model: Any, config: DynImgConfig, pixels: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds, and projected, pooled features of one video: (images * 144, c)."""
    apply_dynimg(model, config)
    try:
        began = time.perf_counter()
        tokens = model.model.get_image_features(pixels).pooler_output[0]
        return time.perf_counter() - began, tokens
    finally:
        remove_dynimg(model)


@torch.no_grad()
def check(model: Any, images: int) -> None:
    """RuntimeError unless masked-out prompts leave the key frame the plain tower's bits."""
    apart = DynImgConfig(num_images=images, fusion="tokens", prompt_attention="apart")
    pixels = draw(model, apart)
    expected = encoded(model, DynImgConfig(num_images=images, fusion="none"), pixels[:, :, :, : pixels.shape[-1]])
    if not torch.equal(encoded(model, apart, pixels)[:, : expected.shape[1]], expected):
        raise RuntimeError("masked-out prompts changed the key frame's features")


def encoded(model: Any, config: DynImgConfig, pixels: torch.Tensor) -> torch.Tensor:
    """Features of all patches, before pooling."""
    core = apply_dynimg(model, config).model
    try:
        return core.dynimg.encode(core, pixels.flatten(0, 1))
    finally:
        remove_dynimg(model)


def measure(name: str, real: bool, images: int, rounds: int) -> list[dict[str, Any]]:
    """One row per way; ratios are medians over rounds in which all ways took their turn."""
    model = build(real)
    check(model, images)
    configs = {way: DynImgConfig(num_images=images, **options) for way, options in WAYS.items()}  # type: ignore[arg-type]
    pixels = {way: draw(model, config) for way, config in configs.items()}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds + (not real)):  # a tiny tower is warmed up first
        for way, config in configs.items():
            spent, tokens = features(model, config, pixels[way])
            if tokens.shape[0] != 144 * images:
                raise RuntimeError(f"{way}: {tokens.shape[0]} tokens for {images} DynImgs")
            if turn or real:
                seconds[way].append(spent)
    return [
        {
            "tower": name,
            "fusion": way,
            "dynimgs": images,
            "patches": config_patches(configs[way]),
            "seconds": round(median(seconds[way]), 4),
            "of_canvas": round(median(a / b for a, b in zip(seconds[way], seconds["canvas"], strict=True)), 2),
        }
        for way in WAYS
    ]


def config_patches(config: DynImgConfig) -> int:
    """Patches of one DynImg that go through the tower's layers."""
    layout = DynImgLayout.from_config(config)
    return layout.num_canvases * layout.rows * layout.grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one DynImg on the real tower, once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all figures here")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = measure("tiny, 27 x 27", False, 4, 5)
    rows += measure("so400m/14-384", True, 1 if given.quick else 4, 1 if given.quick else 3)
    print("| tower | fusion | DynImgs | patches of each | seconds | multiple of canvas |\n|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(str(value) for value in row.values())} |")
    if given.json:
        given.json.write_text(json.dumps({"threads": given.threads, "rows": rows}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
