"""Remake dynimg-motion-tiny from nothing: `python examples/motion_tiny/make.py OUTPUT`.

Draws clips of motion_qa's training split, teaches a vision tower and a language model on single pictures, trains one
model per arm on whole clips with `dynimg train`, and prints their accuracies on the held-out split side by side.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from base import ARMS, build_base
from card import card
from clips import draw_clips, write_conversations
from language import ClipLesson, Language, PictureLesson
from pictures import compose_all
from tower import teach_tower

from dynimg_plugin import DynImgProcessor, load
from dynimg_plugin.demo import arm_accuracies, table
from dynimg_plugin.eval_tasks.motion_qa.dataset import STORED_CLIPS, rows
from dynimg_plugin.training import read_config, train

HERE = Path(__file__).parent
FIGURES = "figures.json"  # of an arm on the held-out split
UNCHANGING = ("output", "workers", "arms")  # options that do not change what is made
MADE = "made.json"  # what a finished base was made with


def make_base(folder: Path, clips: list[tuple[int, Path]], *, steps: tuple[int, int, int], seed: int) -> Path:
    """A checkpoint with 1D RoPE that all arms start from: full key frames in every third batch, else DynImgs.

    Args:
        steps: of the tower on pictures, of the language model on pictures, of the language model on clips.

    Raises:
        ValueError: another one is there already.
    """
    made, wanted = folder / MADE, {"clips": len(clips), "steps": list(steps), "seed": seed}
    if made.exists():
        if (found := json.loads(made.read_text("utf-8"))) != wanted:
            raise ValueError(f"{folder} was made with {found}, asked for {wanted}; give another folder or remove it")
        return folder
    model, processor = build_base(seed)
    keys, dynimgs = (compose_all(DynImgProcessor(processor, ARMS[arm]), clips) for arm in ("key_frames", "dynimg"))
    print("tower", flush=True)
    teach_tower(model, (keys, dynimgs, dynimgs), steps=steps[0], seed=seed)
    print("language model, single pictures", flush=True)
    language = Language(model, (keys, dynimgs, dynimgs), seed=seed)
    language.teach(PictureLesson, steps=steps[1], seed=seed, lr=3e-3)
    print("language model, whole clips", flush=True)
    language.teach(ClipLesson, steps=steps[2], seed=seed, lr=3e-3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    made.write_text(json.dumps(wanted) + "\n", "utf-8")  # last: a base without it is unfinished
    return folder


def make_arm(arm: str, base: Path, data: Path, output: Path, *, seed: int, changes: list[str]) -> Path:
    """`dynimg train examples/motion_tiny/train.yaml base=... data=... output=...` with the arm's DynImg options."""
    values: dict[str, Any] = yaml.safe_load((HERE / "train.yaml").read_text("utf-8"))
    values |= {"base": str(base), "data": str(data), "data_root": str(data.parent), "output": str(output), "seed": seed}
    values |= {name: value for name, value in ARMS[arm].to_dict().items() if value is not None}
    train(read_config(values, changes))
    (output / "README.md").unlink()  # one card for all arms, see card.py
    for checkpoint in output.glob("checkpoint-*"):
        raise ValueError(f"{checkpoint} was not expected; train.yaml says save_strategy: no")
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "output", type=Path, help="folder for clips, base and one checkpoint per arm; clips and base are kept"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all weights, orders and batches")
    parser.add_argument("--clips", type=int, default=2500, help="of the training split")
    parser.add_argument("--tower-steps", type=int, default=5000, help="of 8 pictures")
    parser.add_argument("--picture-steps", type=int, default=1000, help="of 48 pictures")
    parser.add_argument("--clip-steps", type=int, default=2000, help="of 16 clips")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw clips")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--train", nargs="*", default=[], metavar="key=value", help="as `dynimg train` takes them")
    given = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order: the same weights on every machine of a kind
    clips = draw_clips(given.output / "clips", given.clips, workers=given.workers)
    data = write_conversations(given.output / "clips" / "train.jsonl", given.clips, seed=given.seed)
    steps = given.tower_steps, given.picture_steps, given.clip_steps
    base = make_base(given.output / "base", clips, steps=steps, seed=given.seed)
    for arm in given.arms:
        folder = make_arm(arm, base, data, given.output / arm, seed=given.seed, changes=given.train)
        (folder / FIGURES).write_text(json.dumps(arm_accuracies(*load(folder)), indent=2) + "\n", "utf-8")
        print(f"{arm}: {_cpu_minutes():.0f} CPU minutes so far", flush=True)
    figures = {
        arm: json.loads((given.output / arm / FIGURES).read_text("utf-8"))
        for arm in ARMS
        if (given.output / arm / FIGURES).exists()
    }
    print(table(figures))
    (given.output / "README.md").write_text(_card(given, figures), "utf-8")


def _cpu_minutes() -> float:
    """Of this process and of those that drew."""
    return sum(os.times()[:4]) / 60


def _card(given: argparse.Namespace, figures: dict[str, dict[str, float]]) -> str:
    model, processor = load(given.output / next(iter(figures)))
    return card(
        figures,
        weights=model.num_parameters(),
        tokens=processor.config.tokens_per_video,
        rows=len(rows("held_out", STORED_CLIPS)),
        options=", ".join(f"{name}={value}" for name, value in vars(given).items() if name not in UNCHANGING),
        cpu=_cpu_minutes(),
        clips=given.clips,
    )


if __name__ == "__main__":
    main()
