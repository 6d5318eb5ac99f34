"""DynImgs as PNG files with the lists that LLaMA-Factory and ms-swift read:

    python examples/images_for_other_engines.py BASE DATA FOLDER

writes FOLDER/images/*.png, FOLDER/dynimg.jsonl (`messages` with one <image> per picture, and `images`) and
FOLDER/dataset_info.json for LLaMA-Factory. BASE is only asked for the size of its vision tower.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import AutoProcessor

from dynimg_plugin import DynImgProcessor
from dynimg_plugin.training import DynImgDataset

TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
INFO = {
    "dynimg": {
        "file_name": "dynimg.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": TAGS,
    }
}


def main(base: str, data: str, folder: str) -> None:
    processor = DynImgProcessor(AutoProcessor.from_pretrained(base))
    target = Path(folder)
    (target / "images").mkdir(parents=True, exist_ok=True)
    with (target / "dynimg.jsonl").open("w", encoding="utf-8") as lines:
        for number, sample in enumerate(DynImgDataset(data, processor)):
            pictures = [image for video in sample["videos"] for dynimg in video for image in dynimg.images]
            names = [f"images/{number:06d}_{index}.png" for index in range(len(pictures))]
            for name, picture in zip(names, pictures, strict=True):
                picture.save(target / name)
            lines.write(json.dumps({"messages": messages(sample, len(names)), "images": names}) + "\n")
    (target / "dataset_info.json").write_text(json.dumps(INFO, indent=2) + "\n", "utf-8")


def messages(sample: dict, count: int) -> list[dict[str, str]]:
    """Contents as texts; the pictures stand before the first question."""
    texts = ["".join(item.get("text", "") for item in message["content"]) for message in sample["messages"]]
    turns = [{"role": m["role"], "content": text} for m, text in zip(sample["messages"], texts, strict=True)]
    first = next(turn for turn in turns if turn["role"] == "user")
    first["content"] = "<image>" * count + ("\n" if count else "") + first["content"]
    return turns


if __name__ == "__main__":
    main(*sys.argv[1:4])
