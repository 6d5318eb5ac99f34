"""Tiny checkpoints written by the llava package's own code, read by ours: are features, logits, newlines the same?

    python benchmarks/original_llava.py FOLDER KIND    FOLDER holds `llava/`, KIND is one of KINDS

FOLDER is a checkout of LLaVA-NeXT, or for llava_1_5 an installation of llava-torch 1.2.2
(`pip install --no-deps --target FOLDER llava-torch==1.2.2`). What transformers 5 no longer has is put back
meanwhile, see dynimg_plugin.patches.llava_native.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dynimg_plugin import DynImgConfig, apply_dynimg, remove_dynimg
from dynimg_plugin.families import encode_llava
from dynimg_plugin.layout import DynImgLayout
from dynimg_plugin.original import load_original
from dynimg_plugin.patches.llava_native import llava_shims
from dynimg_plugin.patching import dynimg_config
from dynimg_plugin.pooling import pool_tokens
from dynimg_plugin.tiny import Kit

UNPAD = {"mm_patch_merge_type": "spatial_unpad", "mm_spatial_pool_stride": 2, "image_grid_pinpoints": [[96, 192]]}
KINDS: dict[str, dict[str, Any]] = {
    "llava_1_5": {},
    "llava_next_video": {**UNPAD, "mm_spatial_pool_mode": "average"},
    "llava_onevision": {**UNPAD, "mm_spatial_pool_mode": "bilinear", "mm_newline_position": "one_token"},
    "llava_video": {**UNPAD, "mm_spatial_pool_mode": "bilinear", "mm_newline_position": "grid"},
}
NEWLINES = ("grid", "frame", "one_token", "no_token")
TOKENS = [10, 20, 30, -200, 40, 50, 60]  # -200 is the package's image


def write_siglip(folder: Path, values: dict[str, Any]) -> None:
    """A tiny SigLIP where the package would load the large one; it deletes the last layer and the head itself."""
    transformers.SiglipVisionConfig(**values).save_pretrained(folder)
    siglip = import_module("llava.model.multimodal_encoder.siglip_encoder")
    config = siglip.SigLipVisionConfig(**values)
    siglip.SigLipVisionConfig = lambda: config
    siglip.SigLipVisionModel.from_pretrained = classmethod(lambda cls, *_, **__: cls(config))
    builder = import_module("llava.model.multimodal_encoder.builder")
    builder.os = SimpleNamespace(path=SimpleNamespace(exists=lambda _: False))  # a path that exists is taken for CLIP


def build(kind: str, folder: Path, kit: Kit) -> Any:
    """The package's model with random weights, saved with its tokenizer into `folder`."""
    qwen = kind in ("llava_onevision", "llava_video")
    module = import_module(f"llava.model.language_model.llava_{'qwen' if qwen else 'llama'}")
    model_class = getattr(module, f"Llava{'Qwen' if qwen else 'Llama'}ForCausalLM")
    tower = folder / ("siglip-tower" if qwen else "tower")
    values = kit.siglip_tower() if qwen else kit.clip_tower()
    values = {name: value for name, value in values.items() if name not in ("model_type", "vision_use_head")}
    torch.manual_seed(0)
    if qwen:
        write_siglip(tower, values)
    else:
        transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**values)).save_pretrained(tower)
        kit.clip_images().save_pretrained(tower)
    text = {name: value for name, value in kit.text("llama").items() if name != "model_type"}
    shared = {"mm_vision_tower": str(tower), "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 32}
    shared |= {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "unfreeze_mm_vision_tower": True}
    model = model_class(model_class.config_class(**text, **shared, **KINDS[kind])).eval()
    if hasattr(model.model, "image_newline"):
        torch.nn.init.normal_(model.model.image_newline, std=0.05)
    model.save_pretrained(folder)
    kit.tokenizer.save_pretrained(folder)
    return model


@torch.no_grad()
def compare(theirs: Any, ours: Any) -> tuple[float, float, float]:
    """Largest differences of patch features and of logits, and the logits' standard deviation."""
    frames = torch.randn(2, 3, *[ours.config.vision_config.image_size] * 2)
    features = (theirs.encode_images(frames) - encode_llava(ours.model, frames)).abs().max().item()
    ids, mask = torch.tensor([TOKENS]), torch.ones(1, len(TOKENS), dtype=torch.long)
    newer = hasattr(theirs, "add_token_per_grid")
    how = ([frames], ["video"], None) if newer else (frames[:1], None)
    _, positions, attention, _, embeds, _ = theirs.prepare_inputs_labels_for_multimodal(
        ids, None, mask, None, None, *how
    )
    expected = theirs(inputs_embeds=embeds, attention_mask=attention, position_ids=positions).logits
    count = embeds.shape[1] - len(TOKENS) + 1
    visual = BaseModelOutputWithPooling(pooler_output=list(embeds[:, 3 : 3 + count]))
    runs = [[ours.config.image_token_id] * count if token < 0 else [token] for token in TOKENS]
    tokens = [token for run in runs for token in run]
    logits = ours(input_ids=torch.tensor([tokens]), mm_encoder_outputs={"image": visual}).logits
    return features, (logits - expected).abs().max().item(), expected.std().item()


@torch.no_grad()
def compare_newlines(theirs: Any, ours: Any) -> float:
    """Largest difference of a video's 4 DynImgs, newlines included, over all words of mm_newline_position.

    The package runs its whole way of a video; only its pooling to half the side is replaced by ours to 12 x 12.
    """
    frames = torch.randn(4, 3, *[ours.config.vision_config.image_size] * 2)
    ids, mask, differences = torch.tensor([TOKENS]), torch.ones(1, len(TOKENS), dtype=torch.long), []
    for newline in NEWLINES:
        apply_dynimg(ours, DynImgConfig(newline=newline))
        layout = DynImgLayout.from_config(dynimg_config(ours))
        theirs.get_2dPool = lambda features, layout=layout: pool_tokens(features[:, None], layout)
        theirs.config.mm_newline_position = newline
        embeds = theirs.prepare_inputs_labels_for_multimodal(ids, None, mask, None, None, [frames], ["video"], None)[4]
        expected = embeds[0, 3 : 3 + embeds.shape[1] - len(TOKENS) + 1]
        found = ours.model.get_image_features(frames[None]).pooler_output[0]
        remove_dynimg(ours)
        differences.append((found - expected).abs().max().item())  # another number of tokens raises
    return max(differences)


def main(package: str, kind: str) -> None:
    sys.path.insert(0, package)
    with llava_shims() as shims, tempfile.TemporaryDirectory() as folder:
        print(shims)
        theirs = build(kind, Path(folder), Kit())
        ours, _ = load_original(folder)
        features, logits, spread = compare(theirs, ours.eval())
        newlines = compare_newlines(theirs, ours) if hasattr(theirs, "add_token_per_grid") else None
    print(f"{kind}: patch features differ by {features:.1e}, logits by {logits:.1e} at most (they spread {spread:.2f})")
    if newlines is not None:
        print(f"{kind}: DynImgs with newline tokens ({', '.join(NEWLINES)}) differ by {newlines:.1e} at most")


if __name__ == "__main__":
    main(*sys.argv[1:])
