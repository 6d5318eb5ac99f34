"""4D RoPE on a CPU, per layer: the native operator beside eager PyTorch and torch.compile, checked, then timed.

    python benchmarks/rope.py --quick
    python benchmarks/rope.py --json rope.json          # about 5 minutes on two idle cores

Every figure is a ratio of wall times in one run (arms take turns; median over rounds of time / native time). "forward"
is inference with the tables given; "learn" is forward and backward with learnable theta. The process keeps its memory
(glibc's allocator is told so), or page faults of fresh outputs would hide every difference.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000", "MALLOC_TOP_PAD_": "268435456"}
if any(os.environ.get(name) != value for name, value in WARM.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **WARM})  # glibc reads it at the start

import torch  # noqa: E402
from rope_arms import LAYERS, LIMITS, Layer, draw, eager, eager_apply, errors, kept, operator, train  # noqa: E402

from dynimg_plugin import ops  # noqa: E402


def compiled() -> Callable[..., list[torch.Tensor]]:
    apply = torch.compile(eager_apply, dynamic=False)
    return lambda x, theta: eager(x, theta, apply)


def in_place(x: Layer, theta: torch.Tensor) -> None:
    for _ in range(LAYERS):
        ops.rope4d_(x.q, x.k, x.cos, x.sin, x.coordinates, theta, implementation="native")


def forward_arms(x: Layer, with_compile: bool) -> dict[str, Callable[[], object]]:
    spread = torch.cat((x.cos, x.cos), -1), torch.cat((x.sin, x.sin), -1)
    tables = tuple(table.to(x.q.dtype) for table in spread)
    own = torch.compile(eager_apply, dynamic=False)
    arms: dict[str, Callable[[], object]] = {
        "native": lambda: operator(x, x.theta),
        "eager": lambda: [eager_apply(x.q, x.k, *tables) for _ in range(LAYERS)],
        "eager's rounding": lambda: operator(x, x.theta, match_eager=True),
        "in place": lambda: in_place(x, x.theta),
        "copy": lambda: [(x.q.clone(), x.k.clone()) for _ in range(LAYERS)],
    }
    return arms | ({"compile": lambda: [own(x.q, x.k, *tables) for _ in range(LAYERS)]} if with_compile else {})


def learn_arms(x: Layer, with_compile: bool) -> dict[str, Callable[[], object]]:
    own = compiled()
    arms: dict[str, Callable[[], object]] = {"native": lambda: train(operator, x), "eager": lambda: train(eager, x)}
    return arms | ({"compile": lambda: train(own, x)} if with_compile else {})


def ratios(arms: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median over rounds of wall time against native's in the same round; and native's milliseconds per layer."""
    for arm in arms.values():
        arm()
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            times[name].append(time.perf_counter() - start)
    against = {n: [a / b for a, b in zip(t, times["native"], strict=True)] for n, t in times.items() if n != "native"}
    found = {name: round(statistics.median(values), 2) for name, values in against.items()}
    return {"native ms": round(statistics.median(times["native"]) * 1e3 / LAYERS, 3), **found}


def measure(tokens: int, dtype: torch.dtype, threads: int, quick: bool, seed: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    x = draw(tokens, dtype, seed)
    rounds = {640: 15, 4096: 9}.get(tokens, 3)
    with_compile = not quick and threads == 1  # Inductor's code is made for a number of threads: minutes more
    with torch.no_grad():
        forward = ratios(forward_arms(draw(tokens, dtype, seed), with_compile), rounds)
    learn = ratios(learn_arms(x, with_compile), rounds)
    keeps = {"native": kept(operator, x), "eager": kept(eager, x)}
    name = str(dtype).removeprefix("torch.")
    return {"tokens": tokens, "dtype": name, "threads": threads, "forward": forward, "learn": learn, "kept": keeps}


def check(seed: int) -> dict[str, dict[str, float]]:
    """Both sides against float64 before anything is timed."""
    found = {}
    for dtype, limit in LIMITS.items():
        x = draw(640, dtype, seed)
        ours, theirs = errors(operator, x), errors(eager, x)
        limits = {"dtheta": max(limit, 3e-3 if dtype == torch.bfloat16 else 0)}
        if wrong := {name: value for name, value in ours.items() if value > limits.get(name, limit)}:
            raise SystemExit(f"native is off from float64 by {wrong}; nothing is reported")
        if max(theirs.values()) > 10 * limit:
            raise SystemExit(f"eager is off from float64 by {theirs}; nothing is reported")
        found[str(dtype).removeprefix("torch.")] = {"native": ours, "eager": theirs}
    return found


def least(rows: list[dict[str, Any]]) -> str:
    """The smallest of every ratio: what can be said of all rows."""
    parts = []
    for kind, arm in itertools.product(("forward", "learn"), ("eager", "compile")):
        if found := [row[kind][arm] for row in rows if arm in row[kind]]:
            parts.append(f"{kind} {min(found)} x faster than {arm}")
    return "native is at least: " + ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="640 tokens, one thread, without torch.compile")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    accuracy = check(given.seed)
    print("relative error against float64, 640 tokens:")
    for dtype, sides in accuracy.items():
        for side, values in sides.items():
            print(f"  {dtype:<9} {side:<7}", "  ".join(f"{name} {value:.1e}" for name, value in values.items()))
    print("\ntimes of one layer, as multiples of native; kept: MB per layer for the backward pass beyond q and k out")
    print("| tokens | dtype | threads | forward ms | eager | compile | eager's rounding | in place | copy "
          "| learn ms | eager | compile | kept native | kept eager |")  # fmt: skip
    print("|" + "---|" * 14)
    rows: list[dict[str, Any]] = []
    for tokens in (640,) if given.quick else (640, 4096, 16384):
        for threads in (1,) if given.quick else (1, 2):
            for dtype in LIMITS:
                row = measure(tokens, dtype, threads, given.quick, given.seed)
                torch.compiler.reset()
                rows.append(row)
                forward, learn, keeps = row["forward"], row["learn"], row["kept"]
                cells = [tokens, row["dtype"], threads, forward["native ms"]]
                names = ("eager", "compile", "eager's rounding", "in place", "copy")
                cells += [forward.get(name, "") for name in names]
                cells += [learn["native ms"], learn["eager"], learn.get("compile", "")]
                cells += [f"{keeps['native'] / 1e6:.1f}", f"{keeps['eager'] / 1e6:.1f}"]
                print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)
    print("\n" + least(rows))
    if given.json:
        content = {"torch": torch.__version__, "load": os.getloadavg(), "accuracy": accuracy, "rows": rows}
        given.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
