"""Remake dynimg-motion-tiny from nothing: `python examples/motion_tiny/make.py OUTPUT`.

Draws clips of motion_qa's training split, teaches a vision tower and a language model on single pictures, trains one
model per arm on whole clips with `dynimg train`, and prints their accuracies on the held-out split side by side.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import yaml
from base import ARMS, build_base
from clips import draw_clips, write_conversations
from language import teach_language
from pictures import compose_all
from tower import teach_tower

from dynimg_plugin import DynImgProcessor, load
from dynimg_plugin.demo import arm_accuracies, table
from dynimg_plugin.training import read_config, train

HERE = Path(__file__).parent


def make_base(folder: Path, clips: list[tuple[int, Path]], *, steps: tuple[int, int], seed: int) -> Path:
    """A checkpoint that has seen single pictures alone: full key frames in every third batch, else DynImgs."""
    if (folder / "config.json").exists():
        return folder
    model, processor = build_base(seed)
    keys, dynimgs = (compose_all(DynImgProcessor(processor, ARMS[arm]), clips) for arm in ("key_frames", "dynimg"))
    print("tower", flush=True)
    teach_tower(model, (keys, dynimgs, dynimgs), steps=steps[0], seed=seed)
    print("language model", flush=True)
    teach_language(model, (keys, dynimgs, dynimgs), steps=steps[1], seed=seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_arm(arm: str, base: Path, data: Path, output: Path, *, seed: int, changes: list[str]) -> Path:
    """`dynimg train examples/motion_tiny/train.yaml base=... data=... output=...` with the arm's DynImg options."""
    values: dict[str, Any] = yaml.safe_load((HERE / "train.yaml").read_text("utf-8"))
    values |= {"base": str(base), "data": str(data), "data_root": str(data.parent), "output": str(output), "seed": seed}
    values |= {name: value for name, value in ARMS[arm].to_dict().items() if value is not None}
    train(read_config(values, changes))
    for checkpoint in output.glob("checkpoint-*"):
        raise ValueError(f"{checkpoint} was not expected; train.yaml says save_strategy: no")
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for clips, base and one checkpoint per arm")
    parser.add_argument("--seed", type=int, default=0, help="of all weights, orders and batches")
    parser.add_argument("--clips", type=int, default=5000, help="of the training split")
    parser.add_argument("--tower-steps", type=int, default=3500, help="of 8 pictures")
    parser.add_argument("--language-steps", type=int, default=2000, help="of 48 pictures")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw clips")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--train", nargs="*", default=[], metavar="key=value", help="as `dynimg train` takes them")
    given = parser.parse_args()
    start = time.process_time()
    clips = draw_clips(given.output / "clips", given.clips, workers=given.workers)
    data = write_conversations(given.output / "clips" / "train.jsonl", given.clips, seed=given.seed)
    base = make_base(given.output / "base", clips, steps=(given.tower_steps, given.language_steps), seed=given.seed)
    print(f"base: {time.process_time() - start:.0f} CPU seconds in this process", flush=True)
    figures = {}
    for arm in given.arms:
        folder = make_arm(arm, base, data, given.output / arm, seed=given.seed, changes=given.train)
        print(f"{arm}: {time.process_time() - start:.0f} CPU seconds so far", flush=True)
        figures[arm] = arm_accuracies(*load(folder))
    (given.output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    print(table(figures))


if __name__ == "__main__":
    main()
