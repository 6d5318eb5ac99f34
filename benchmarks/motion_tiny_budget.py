"""What a token budget costs the shipped dynimg_4d_rope, trained on all tokens: percent right on motion_qa_open.

    python benchmarks/motion_tiny_budget.py --quick                          # 40 questions, one budget
    python benchmarks/motion_tiny_budget.py --json motion_tiny_budget.json   # 240 held-out questions, a minute

Before anything is reported, keep=1.0 must be right as often with every policy, on all kinds of questions.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

from dynimg_plugin import load
from dynimg_plugin.config import DynImgConfig, KeepPolicy
from dynimg_plugin.demo import LINES, MOTION_TINY, arm_accuracies

ARM = MOTION_TINY / "dynimg_4d_rope"
POLICIES: tuple[KeepPolicy, ...] = get_args(KeepPolicy)
COLUMNS = (  # what the model has learned; order and count it guesses
    "accuracy_key_frames",
    "accuracy_direction_fast",
    "accuracy_existence",
)


def accuracies(config: DynImgConfig, limit: int | None) -> dict[str, float]:
    return arm_accuracies(*load(ARM, config=config), limit=limit)


def shown(found: dict[str, float]) -> dict[str, float]:
    return {name: found[name] for name in COLUMNS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 questions, keep=0.4 alone")
    parser.add_argument("--json", type=Path, help="write all figures here")
    given = parser.parse_args()
    limit, keeps = (40, [0.4]) if given.quick else (None, [0.6, 0.4, 0.25])
    config = DynImgConfig.from_pretrained(ARM)
    whole = accuracies(config, limit)
    for policy in POLICIES:
        if policy != config.keep_policy and accuracies(replace(config, keep_policy=policy), limit) != whole:
            raise SystemExit(f"keep=1.0 differs with {policy} and {config.keep_policy}; nothing is reported")
    rows = [
        {"keep": keep, "policy": policy, **shown(accuracies(replace(config, keep=keep, keep_policy=policy), limit))}
        for keep in keeps
        for policy in POLICIES
    ]
    all_tokens = shown(whole)
    print(f"\n| keep | policy | {' | '.join(LINES[name].strip() for name in COLUMNS)} |\n|---|---|---|---|---|")
    for row in [{"keep": 1.0, "policy": "any", **all_tokens}, *rows]:
        print(f"| {row['keep']} | {row['policy']} | {' | '.join(f'{row[name]:.0f}' for name in COLUMNS)} |")
    if given.quick:
        print("--quick: few questions; no figure to be quoted")
    if given.json:
        given.json.write_text(json.dumps({"all tokens": all_tokens, "rows": rows}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
