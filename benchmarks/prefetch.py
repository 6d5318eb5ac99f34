"""What composing videos ahead of the model, and each once, saves: 25 questions about each of several clips.

Three ways to the same answers, which are compared before anything is reported: every question composes its video
again; each video is composed once, when its first question comes; each once and ahead of the model, in a thread.

    python benchmarks/prefetch.py --quick
    python benchmarks/prefetch.py --json prefetch.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from video_files import Case, make

from dynimg_plugin.evaluation.ahead import ComposedVideos, ahead
from dynimg_plugin.evaluation.model import LlavaDynImg, batches
from dynimg_plugin.evaluation.requests import Question
from dynimg_plugin.tiny import write_tiny

WAYS = ("every question", "once", "once, ahead")


def questions(clips: list[Path], each: int) -> list[Question]:
    """The same conversation shape as a task's, `each` times about every clip."""
    texts = [f"Question {i}: what moves in this video?" for i in range(each)]
    talks = [[{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}] for text in texts]
    return [Question(talk, [str(clip)], {"max_new_tokens": 4}) for clip in clips for talk in talks]


def answer_all(model: LlavaDynImg, asked: list[Question], way: str) -> tuple[float, int, list[str]]:
    """Wall seconds, videos composed, answers."""
    compose = model.processor.compose
    depth = 4 if way == "once, ahead" else 0
    model.videos = ComposedVideos(compose, keep=1 if way == "every question" else 8, workers=int(depth > 0))
    start, texts = time.perf_counter(), []
    for batch in batches(ahead(asked, model.videos, depth), 1):
        if way == "every question":
            model.videos._kept.clear()
        texts += [result.text for result in model._answer(batch)]
    return time.perf_counter() - start, model.videos.count, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small clips, ten questions each")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--files", type=Path, default=Path(tempfile.gettempdir()) / "dynimg_benchmark_video")
    given = parser.parse_args()
    given.files.mkdir(parents=True, exist_ok=True)
    size, each = ("360p", 10) if given.quick else ("1080p", 25)
    clips = [make(Case(size, gop, 5), given.files) for gop in ((48, 250) if given.quick else (12, 48, 250))]
    model = LlavaDynImg(str(write_tiny("llava_onevision", given.files / "tiny")), device="cpu")
    asked = questions(clips, each)
    answer_all(model, asked[:1], "once")
    found = {way: answer_all(model, asked, way) for way in WAYS}
    if len({tuple(texts) for *_, texts in found.values()}) > 1:
        raise SystemExit("the three ways gave different answers; nothing is reported")
    slowest = found[WAYS[0]][0]
    print(f"{len(asked)} questions about {len(clips)} {size} clips, tiny model, same answers\n")
    print("| composed | videos composed | seconds | ratio |\n|---|---|---|---|")
    for way, (seconds, count, _) in found.items():
        print(f"| {way} | {count} | {seconds:.1f} | {slowest / seconds:.2f} |")
    if given.json:
        rows = {way: {"seconds": seconds, "composed": count} for way, (seconds, count, _) in found.items()}
        given.json.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
