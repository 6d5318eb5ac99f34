"""The video path against decord, torchcodec, lmms-eval's PyAV loader and the floor, on files that this script makes.

Every loader delivers the same 20 frames (those that `auto` picks for 4 DynImgs) and has them painted into DynImgs by
the same code. The floor is told the times and the I-frames beforehand and only opens, seeks, decodes and paints; decord
and torchcodec are told the times too; our loader has to find them. `motion` is ours with prompt frames chosen by packet
sizes. lmms-eval's loader takes 20 uniform frames. decord, torchcodec (with FFmpeg's shared libraries) are optional.

    python benchmarks/video.py --quick               two files, under a minute once they are made
    python benchmarks/video.py --json video.json     all files; they stay in --files for the next run
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
from video_files import SEGMENT_SECONDS, SIZES, Case, make
from video_loaders import KEYS, RUN, ours, picked_times

SAME_FRAMES = {"floor": 0.0, "torchcodec": 2.0, "decord": 2.0}  # mean difference allowed, in grey levels
LONGEST_FOR_LMMS_EVAL = 30  # seconds; it decodes everything up to the last frame
FULL = [Case(size, gop, seconds) for size in SIZES for gop in (12, 48, 250) for seconds in (5, 30, 180, 1800)]
QUICK = [Case("360p", 48, 30), Case("360p", 250, 5)]


def measure(loader: str, path: Path, warm_up: Path, repeats: int) -> dict[str, float]:
    """Median CPU milliseconds of a load, and the growth of peak memory over the loaded libraries in MB."""
    for file in {path, warm_up}:
        KEYS[file.name] = iframes(file)
    times, tick = picked_times(path)
    RUN[loader](warm_up, *picked_times(warm_up))
    if loader in SAME_FRAMES:
        compare(loader, path, RUN[loader](path, times, tick), ours(path, times, tick))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, seconds = peak_memory(), []
    for _ in range(repeats):
        start = cpu_seconds()
        RUN[loader](path, times, tick)
        seconds.append(cpu_seconds() - start)
    return {"cpu_ms": 1000 * statistics.median(seconds), "growth_mb": peak_memory() - before}


def compare(loader: str, path: Path, theirs: object, own: object) -> None:
    """The DynImgs of a loader that was asked for our frames equal ours but for the conversion of colours."""
    for one, other in zip(theirs, own, strict=True):  # type: ignore[call-overload]
        difference = np.abs(np.asarray(one.image, np.int16) - np.asarray(other.image, np.int16)).mean()
        if difference > SAME_FRAMES[loader]:
            raise SystemExit(
                f"{loader} gave other frames of {path.name} (mean difference {difference:.1f} grey levels)"
            )


def iframes(path: Path) -> tuple[int, ...]:
    """What the floor is told beforehand."""
    from dynimg_plugin.video import open_video

    with open_video(path) as video:
        return video.index.iframes


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_memory() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def check(path: Path, segment: Path) -> None:
    """Our 20 frames equal a full decode of the segment that the file repeats, pixel for pixel; else SystemExit."""
    from dynimg_plugin.video import open_video

    with open_video(segment) as video, av.open(str(segment)) as container:
        length = round(SEGMENT_SECONDS / video.index.tick_seconds)
        whole = video.index.last + video.index.frame_ticks <= length
        wanted = {time % length if whole else time for time in picked_times(path)[0]}
        expected, shown = {}, None
        for frame in container.decode(video=0):
            expected |= {time: shown for time in wanted if time not in expected and frame.pts > time}
            shown = (
                frame.to_ndarray(format="rgb24") if any(t not in expected and frame.pts <= t for t in wanted) else shown
            )
        expected |= {time: shown for time in wanted if time not in expected}
    with open_video(path) as video:
        for time, frame in video.read(picked_times(path)[0]):
            if not np.array_equal(frame.pixels, expected[time % length if whole else time]):
                raise SystemExit(f"{path.name}: the frame at {time} differs from a full decode; nothing was timed")


def run(case: Case, loader: str, folder: Path, repeats: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", loader, "--files", str(folder), "--repeats", str(repeats)]
    done = subprocess.run([*command, "--case", json.dumps(asdict(case))], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{loader} failed on {case.name}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict[str, object]], loaders: list[str]) -> str:
    head = "| file | I-frames used | " + " | ".join(f"{name} ms" for name in loaders) + " | ours / floor | ours MB |"
    lines = [head, "|---" * (len(loaders) + 4) + "|"]
    for row in rows:
        found: dict[str, dict[str, float]] = row["loaders"]  # type: ignore[assignment]
        cells = [f"{found[name]['cpu_ms']:.0f}" if name in found else "" for name in loaders]
        ratio = found["ours"]["cpu_ms"] / found["floor"]["cpu_ms"]
        growth = found["ours"]["growth_mb"]
        lines.append(f"| {row['file']} | {row['iframes_used']} | {' | '.join(cells)} | {ratio:.2f} | {growth:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small files, three repeats")
    parser.add_argument("--only", default="", help="only files whose name holds this, e.g. 1800s")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--files", type=Path, default=Path(tempfile.gettempdir()) / "dynimg_benchmark_video")
    parser.add_argument("--repeats", type=int, default=0, help="loads per measurement (default 7, quick 3)")
    parser.add_argument("--one", choices=list(RUN), help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.files.mkdir(parents=True, exist_ok=True)
    if given.one:
        case = Case(**json.loads(given.case))
        warm_up = make(Case(case.size, case.gop, 5), given.files)
        print(json.dumps(measure(given.one, make(case, given.files), warm_up, given.repeats)))
        return
    from dynimg_plugin import compose

    names = {"lmms-eval": "lmms_eval"}
    loaders = [
        name for name in RUN if name in ("floor", "ours", "motion") or importlib.util.find_spec(names.get(name, name))
    ]
    print(f"loaders: {', '.join(loaders)}; not installed: {', '.join(set(RUN) - set(loaders)) or 'none'}")
    rows, started = [], time.time()
    for case in filter(lambda case: given.only in case.name, QUICK if given.quick else FULL):
        path = make(case, given.files)
        segment = (
            path if case.seconds <= SEGMENT_SECONDS else make(Case(case.size, case.gop, SEGMENT_SECONDS), given.files)
        )
        check(path, segment)
        repeats = given.repeats or (3 if given.quick else 7)
        found = {
            name: run(case, name, given.files, repeats)
            for name in loaders
            if name != "lmms-eval" or case.seconds <= LONGEST_FOR_LMMS_EVAL
        }
        record = compose(path)[0].record
        rows.append({"file": case.name, "iframes_used": record["iframes_used"], "loaders": found})
        print(table(rows[-1:], loaders).splitlines()[-1], flush=True)
    print(f"\n{table(rows, loaders)}\n\n{time.time() - started:.0f} s")
    if given.json:
        given.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
