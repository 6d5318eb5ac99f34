"""What a token budget saves: prefill time and KV cache of a 0.5B-shaped language model, checked, then measured.

    python benchmarks/token_budget.py --quick
    python benchmarks/token_budget.py --json token_budget.json      # some minutes on two idle cores

A LLaVA-OneVision with a tiny vision tower and random weights in Qwen2-0.5B's shape (small vocabulary) reads one video;
prefill is the patched model's whole forward, choice of tokens included. Every figure is a ratio within one run: arms
take turns, and the median over rounds of the arm's time stands against that of keep=1 (576 tokens) and that of 16
frames with 144 tokens each (2,304, as many as PLLaVA's). No figure says how well a trained model answers.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import Qwen2Config

from dynimg_plugin import DynImgConfig, DynImgProcessor, apply_dynimg, remove_dynimg
from dynimg_plugin.config import KeepPolicy
from dynimg_plugin.patches import llava_onevision
from dynimg_plugin.tiny import Kit, build_from

KEEPS = (1.0, 0.6, 0.4, 0.25, 0.1)
SHAPE = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
QUESTION = "What moves in this video, and where does it go? Answer in one sentence."
FRAMES = "16 frames x 144"


def build(layers: int, device: str) -> tuple[Any, Any]:
    """(model, its own processor): tiny tower, Qwen2-0.5B's shape with so many of its 24 layers."""
    kit = Kit()
    config, base = llava_onevision.tiny(kit)
    text = kit.text("qwen2", **{**SHAPE, "num_hidden_layers": layers})
    config.text_config = Qwen2Config(**{name: value for name, value in text.items() if name != "model_type"})
    model, base = build_from(kit, config, base)
    return model.eval().to(device, torch.float32 if device == "cpu" else torch.bfloat16), base


def prepared(base: Any, config: DynImgConfig, device: str) -> Any:
    frames = torch.randint(0, 256, (32, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return DynImgProcessor(base, config)(text=QUESTION, videos=frames, return_tensors="pt").to(device)


def arms(policy: str) -> dict[str, DynImgConfig]:
    budgets = {f"keep={keep:g}": DynImgConfig(keep=keep, keep_policy=policy) for keep in KEEPS}
    return budgets | {FRAMES: DynImgConfig(num_images=16, fusion="none")}


@torch.no_grad()
def check(model: Any, base: Any, policy: str, device: str) -> float:
    """keep=1 gives the bits of a config without the option; a budget, in 1D, what slicing by hand gives (max |d|)."""
    inputs = prepared(base, DynImgConfig(), device)
    plain = apply_dynimg(model, DynImgConfig())(**inputs).logits
    remove_dynimg(model)
    whole = apply_dynimg(model, DynImgConfig(keep=1.0, keep_policy=policy))(**inputs).logits
    remove_dynimg(model)
    if not torch.equal(whole, plain):
        raise SystemExit("keep=1.0 is not the model without a budget")
    config = DynImgConfig(keep=0.4, keep_policy=policy, rope_4d=False)
    fewer = prepared(base, config, device)
    apply_dynimg(model, config)
    logits, kept = model(**fewer).logits, model.model.get_image_features(fewer["pixel_values"]).kept[0]
    remove_dynimg(model)
    apply_dynimg(model, DynImgConfig(rope_4d=False))
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    remove_dynimg(model)
    image = model.config.image_token_id
    stays = inputs["input_ids"][0] != image
    stays[(~stays).nonzero()[kept, 0]] = True
    embeds = model.get_input_embeddings()(fewer["input_ids"])
    embeds[fewer["input_ids"] == image] = features[kept].to(embeds.dtype)
    positions = stays.nonzero().T  # kept tokens keep their places in the sequence
    by_hand = model(inputs_embeds=embeds, attention_mask=fewer["attention_mask"], position_ids=positions).logits
    apart = (by_hand - logits).abs().max().item()
    if apart > (1e-3 if device == "cpu" else 0.25):
        raise SystemExit(f"kept tokens differ from slicing by hand by {apart:.2g}")
    return apart


@torch.no_grad()
def prefill(model: Any, inputs: Any) -> tuple[float, int]:
    """Seconds of one prefill, and bytes of the cache that it leaves."""
    wait(model)
    began = time.perf_counter()
    cache = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    wait(model)
    seconds = time.perf_counter() - began
    return seconds, sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


def wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def measure(model: Any, base: Any, configs: dict[str, DynImgConfig], rounds: int, device: str) -> list[dict[str, Any]]:
    inputs = {name: prepared(base, config, device) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    size: dict[str, int] = {}
    for turn in range(rounds + 1):
        for name, config in configs.items():
            took, size[name] = prefill(apply_dynimg(model, config), inputs[name])
            remove_dynimg(model)
            if turn:  # the first round warms up
                seconds[name].append(took)
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    return [
        {
            "arm": name,
            "visual_tokens": config.tokens_per_video,
            "prefill_to_576": median[name] / median["keep=1"],
            "prefill_to_2304": median[name] / median[FRAMES],
            "kv_to_576": size[name] / size["keep=1"],
            "kv_to_2304": size[name] / size[FRAMES],
        }
        for name, config in configs.items()
    ]


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'':16} {'visual':>7} {'prefill,':>9} {'against':>8} {'KV cache,':>10} {'against':>8}")
    print(f"{'':16} {'tokens':>7} {'to 576':>9} {'2,304':>8} {'to 576':>10} {'2,304':>8}")
    for row in rows:
        print(
            f"{row['arm']:16} {row['visual_tokens']:7} {row['prefill_to_576']:9.2f} {row['prefill_to_2304']:8.2f} "
            f"{row['kv_to_576']:10.2f} {row['kv_to_2304']:8.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 of the 24 layers, one round")
    parser.add_argument("--policy", default=DynImgConfig().keep_policy, choices=get_args(KeepPolicy))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    layers, rounds = (4, 1) if options.quick else (24, 3)
    model, base = build(layers, options.device)
    apart = check(model, base, options.policy, options.device)
    print(f"keep=1.0 is the model without a budget, bit for bit; kept tokens against slicing by hand: {apart:.1e}")
    rows = measure(model, base, arms(options.policy), rounds, options.device)
    show(rows)
    if options.quick:
        print("--quick: few layers, one round; no prefill figure to be quoted")
    if options.json:
        facts = {"layers": layers, "rounds": rounds, "policy": options.policy, "device": options.device}
        facts |= {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
        options.json.write_text(json.dumps({**facts, "max_difference": apart, "rows": rows}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
