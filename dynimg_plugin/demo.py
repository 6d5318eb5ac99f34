"""`dynimg demo`: the main job from a video file to a table, with a model that is made on the spot."""

from __future__ import annotations

from pathlib import Path

from dynimg_plugin.composition import compose
from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.eval_tasks.motion_qa.dataset import clip_path, rows
from dynimg_plugin.evaluation.run import run_lmms_eval
from dynimg_plugin.loading import load
from dynimg_plugin.preview import sheet
from dynimg_plugin.tiny import write_tiny


def run(video: Path | None, output: Path, limit: int) -> None:
    """Compose a video, ask a random tiny checkpoint about it, evaluate that checkpoint on motion_qa."""
    output.mkdir(parents=True, exist_ok=True)
    row = rows("held_out", 1)[0]
    source = video or clip_path(row, output)
    question = "What moves?" if video else row["question"]
    print(f"1. video: {source}")
    dynimgs = compose(source, DynImgConfig())
    pictures = [output / "dynimgs.png", output / "dynimgs_annotated.png"]
    for picture, annotate in zip(pictures, (False, True), strict=True):
        sheet(dynimgs, annotate=annotate).save(picture)
    print(f"2. its {len(dynimgs)} DynImgs: {pictures[0]}, explained: {pictures[1]}")
    checkpoint = write_tiny("llava_onevision", output / "tiny")
    model, processor = load(checkpoint)
    inputs = processor(text=question, videos=[source], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
    tokens = int((inputs["input_ids"] == processor.image_token_id).sum())
    print(f"3. a random tiny checkpoint: {checkpoint}; it reads the video as {tokens} tokens")
    print(f"   {question} -> {processor.batch_decode(ids, skip_special_tokens=True)[0]!r} (random weights)")
    print(f"4. lmms-eval --model llava_dynimg --tasks motion_qa --limit {limit}")
    results = run_lmms_eval({"pretrained": checkpoint}, "motion_qa", output / "results", limit=limit)
    print(f"results: {results}\npicture: {pictures[1]}")
