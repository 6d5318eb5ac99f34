"""4D RoPE on a CUDA GPU, per layer, against the memory-bandwidth floor. Needs torch and the source tree only.

    python benchmarks/rope_gpu.py --json rope_gpu.json

First the bandwidth of a plain copy is measured; the floor of an operation is its bytes at that bandwidth: q and k read
and written once, in the backward pass their gradients, and the roped outputs of visual tokens for theta's gradient.
Inputs rotate through sets that together exceed the L2 cache. The operator's implementations are checked against
float64 before they are timed, eager is transformers' formula (a test holds it to theirs); the gradient is taken twice
and must be the same bits. An implementation that is not there is named with the reason; one that is wrong is named and
not timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rope_arms import DIM, HEADS, KV_HEADS, LAYERS, LIMITS, VISUAL, Layer, draw, eager_apply, errors, kept, operator

from dynimg_plugin import ops
from dynimg_plugin.ops import reference

ROUNDS, BEYOND_L2 = 30, 256 * 2**20


def microseconds(calls: list[Callable[[], Any]]) -> float:
    """Median time of one call on the GPU; the calls take turns, so that their inputs are not in the cache."""
    for call in calls:
        call()
    times = []
    for turn in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        calls[turn % len(calls)]()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes per second of a copy of 1 GiB, read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (microseconds([lambda: target.copy_(source)]) * 1e-6)


def graphed(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call as a CUDA graph: kernel time without Python's."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def tables_of(x: Layer) -> tuple[torch.Tensor, ...]:
    return x.cos, x.sin, x.coordinates, x.theta


def forward_calls(sets: list[Layer], arm: str) -> list[Callable[[], Any]]:
    if arm in ("eager", "compile"):
        apply = torch.compile(eager_apply, dynamic=False) if arm == "compile" else eager_apply
        spread = reference.SPREAD["half"]
        return [partial(apply, x.q, x.k, spread(x.cos).to(x.q.dtype), spread(x.sin).to(x.q.dtype)) for x in sets]
    return [partial(ops.rope4d, x.q, x.k, *tables_of(x), implementation=arm) for x in sets]


def backward_calls(sets: list[Layer], arm: str) -> list[Callable[[], Any]]:
    """The backward kernel by itself, theta learnable."""
    backward = getattr(torch.ops, ops.NAMES[arm]).rope4d_backward
    outs = [ops.rope4d(x.q, x.k, *tables_of(x), implementation=arm) for x in sets]
    return [partial(backward, *x.grads, *out, *tables_of(x), False, True) for x, out in zip(sets, outs, strict=True)]


def repeats(x: Layer, arm: str) -> bool:
    once, again = ([t.clone() for t in backward_calls([x], arm)[0]()] for _ in range(2))
    return all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def measure(tokens: int, dtype: torch.dtype, arm: str, bandwidth: float, seed: int) -> dict[str, Any]:
    first = draw(tokens, dtype, seed, "cuda")
    count = max(2, min(8, BEYOND_L2 // first.bytes + 1))
    sets = [first, *(draw(tokens, dtype, seed + i, "cuda") for i in range(1, count))]
    table_bytes = tokens * (DIM + 3) * 4
    visual_share = min(1.0, VISUAL / tokens)
    floors = {
        "forward": (2 * first.bytes + table_bytes) / bandwidth * 1e6,
        "backward": ((2 + visual_share) * first.bytes + table_bytes) / bandwidth * 1e6,
    }
    found: dict[str, Any] = {"tokens": tokens, "dtype": str(dtype).removeprefix("torch."), "arm": arm}
    if arm in ops.NAMES:
        found |= {"error": errors(partial(operator, implementation=arm), first), "same bits": repeats(first, arm)}
        found["kept bytes"] = kept(partial(operator, implementation=arm), first)
        limit = 3e-3 if dtype == torch.bfloat16 else LIMITS[dtype]
        if max(found["error"].values()) > limit or not found["same bits"]:
            return found | {"wrong": True}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    timed = {"forward": [graphed(call) for call in forward_calls(sets, arm)]}
    if arm in ops.NAMES:
        timed["backward"] = [graphed(call) for call in backward_calls(sets, arm)]
    for name, calls in timed.items():
        us = microseconds(calls)
        found[name] = {"us": round(us, 1), "floor us": round(floors[name], 1), "ratio": round(us / floors[name], 2)}
    found["peak MB"] = round((torch.cuda.max_memory_allocated() - before) / 1e6)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4096 tokens in bf16 only")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("rope_gpu.py measures a CUDA device, and this torch sees none; rope.py measures the CPU")
    bandwidth, rows = copy_bandwidth(), []
    print(f"{torch.cuda.get_device_name()}, copy {bandwidth / 1e12:.2f} TB/s, {HEADS} + {KV_HEADS} heads of {DIM}")
    arms = [arm for arm in ops.NAMES if not (why := ops.missing(arm, "cuda")) or print(f"{arm} is missing: {why}")]
    print("| tokens | dtype | arm | forward us | x floor | backward us | x floor | peak MB |\n|" + "---|" * 8)
    for tokens in (4096,) if given.quick else (640, 4096, 16384, 65536):
        for dtype in (torch.bfloat16,) if given.quick else tuple(LIMITS):
            for arm in ("eager", "compile", *arms):
                row = measure(tokens, dtype, arm, bandwidth, given.seed)
                rows.append(row)
                if row.get("wrong"):
                    print(f"{arm} is off from float64 or not repeatable, so it is not timed: {row}")
                    continue
                cells = [tokens, row["dtype"], arm]
                for name in ("forward", "backward"):
                    cells += [row[name]["us"], row[name]["ratio"]] if name in row else ["", ""]
                print("| " + " | ".join(map(str, [*cells, row["peak MB"]])) + " |", flush=True)
    if given.json:
        device = {"name": torch.cuda.get_device_name(), "copy bytes per second": bandwidth, "layers": LAYERS}
        given.json.write_text(
            json.dumps({"torch": torch.__version__, **device, "rows": rows}, indent=2) + "\n", "utf-8"
        )


if __name__ == "__main__":
    main()
