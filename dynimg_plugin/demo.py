"""`dynimg demo`: from a video file to answers, with the small trained models that the package carries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynimg_plugin.compat import reads_newest_checkpoints
from dynimg_plugin.composition import compose
from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.eval_tasks.motion_qa.dataset import clip_path, rows
from dynimg_plugin.eval_tasks.motion_qa.questions import open_prompt
from dynimg_plugin.evaluation.during import evaluate_model
from dynimg_plugin.loading import load
from dynimg_plugin.preview import sheet

MOTION_TINY = Path(__file__).parent / "checkpoints" / "dynimg-motion-tiny"  # one checkpoint per arm
ARMS = {"key_frames": "key frames only", "dynimg": "DynImg", "dynimg_4d_rope": "DynImg + 4D RoPE"}
TASK = "motion_qa_open"
LINES = {
    "accuracy_key_frames": "questions that key frames can answer",
    "accuracy_direction_slow": "  direction, slow",
    "accuracy_attribute": "  which object moves slowly",
    "accuracy_static": "  shape of the one that stays",
    "accuracy_between": "questions about what happens between them",
    "accuracy_direction_fast": "  direction, fast",
    "accuracy_count": "  count",
    "accuracy_order": "  order",
    "accuracy_existence": "  existence (a guess: 50)",
}


def run(video: Path | None, output: Path, limit: int | None) -> None:
    """Compose a video, ask dynimg-motion-tiny about it, and evaluate its three arms on motion_qa's held-out split."""
    if not reads_newest_checkpoints():
        raise ValueError(
            "dynimg-motion-tiny was saved by transformers 5, which 4 cannot read: pip install -U transformers"
        )
    output.mkdir(parents=True, exist_ok=True)
    first = first_clip()
    source = video or clip_path(first[0], output)
    print(f"1. video: {source}")
    dynimgs = compose(source, DynImgConfig())
    pictures = [output / "dynimgs.png", output / "dynimgs_annotated.png"]
    for picture, annotate in zip(pictures, (False, True), strict=True):
        sheet(dynimgs, annotate=annotate).save(picture)
    print(f"2. its {len(dynimgs)} DynImgs: {pictures[0]}, explained: {pictures[1]}")
    models = {arm: load(MOTION_TINY / arm) for arm in ARMS}
    tokens = models["dynimg"][1].config.tokens_per_video
    print(
        f"3. asked of dynimg-motion-tiny (0.3 million weights, {tokens} visual tokens, trained on drawn clips alone):"
    )
    for row in first[:1] if video else first:
        print(f"   {row['question']}" + ("" if video else f" ({row['answer']})"))
        for arm, name in ARMS.items():
            print(f"      {name:<17} {answer(*models[arm], source, open_prompt(row))}")
    print(f"4. lmms-eval, {TASK}, held-out split, % right (a guess: 25), half a minute per arm:", flush=True)
    figures = {}
    for arm, name in ARMS.items():
        print(f"   {name}", flush=True)
        figures[arm] = arm_accuracies(*models[arm], limit=limit)
    print(table(figures))
    if limit is None:
        print(
            "   None of the three has learned order and count, 36 questions each of which one is 3 points: "
            "differences there tell nothing."
        )


def first_clip() -> list[dict[str, Any]]:
    """The questions about the first held-out clip in which something rushes through, which key frames miss."""
    asked = rows("held_out", 4)
    fast = next(row for row in asked if row["category"] == "direction_fast")
    return [row for row in asked if row["clip"] == fast["clip"]]


def answer(model: Any, processor: Any, video: Path, question: str) -> str:
    """The model's greedy answer."""
    inputs = processor(text=question, videos=[video], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(ids, skip_special_tokens=True)[0]


def arm_accuracies(model: Any, processor: Any, *, limit: int | None = None) -> dict[str, float]:
    """{metric: percent} of a model on the task, for the metrics in LINES; `limit` questions at most."""
    scores = evaluate_model(model, processor, TASK, limit=limit, batch_size=16)
    return {name: scores[f"{TASK}/{name}"] for name in LINES if f"{TASK}/{name}" in scores}


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """One line per metric, one column per arm; "-" where a limited run reached no such question."""
    head = " " * 45 + "".join(f"{ARMS[arm]:>18}" for arm in figures)
    lines = [
        f"   {words:<42}" + "".join(f"{of[name]:>18.1f}" if name in of else f"{'-':>18}" for of in figures.values())
        for name, words in LINES.items()
    ]
    return "\n".join([head, *lines])
