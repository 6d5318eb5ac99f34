"""DynImgDataset: rows whose videos are composed when they are asked for; broken ones are put aside and counted."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import datasets
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from dynimg_plugin.composition import DynImg
from dynimg_plugin.processing import DynImgProcessor
from dynimg_plugin.training.rows import Row, open_path, read_rows
from dynimg_plugin.video import VideoError

LOOKED_AT = 100  # files whose existence is checked at the start, to find a wrong root at once


class TooManyBroken(ValueError):
    """More videos than allowed cannot be read."""


class DynImgDataset(Dataset[dict[str, Any]]):
    """Conversations about videos, pictures or text alone, for DynImgCollator.

    An item is {"id", "messages", "videos": one list of DynImg per video, "images": PIL images, "keep": drawn or None}.
    A row that cannot be read is replaced by the next one that can; it is named once in `quarantine` and counted.

    Args:
        sources: files or names, see read_rows().
        processor: composes the videos.
        root: folder of the videos and pictures; nothing outside of it is opened.
        seed: None composes as in evaluation; a number draws prompt frames at random, anew in every epoch. What is
            drawn depends on seed, row and epoch alone, not on workers, ranks or order.
        max_broken: tolerated share of broken rows among all rows.
        quarantine: .jsonl file to name broken rows in; shared by workers and ranks.
        keep_composed: read every video once and keep its DynImgs in memory; each worker keeps its own. Not with a seed.
        least_keep: draw `keep`, the share of visual tokens, between this and the processor's, anew in every epoch.
        keep_seed: for it, as `seed` for prompt frames.

    Raises:
        FileNotFoundError: none of the first files is there.
        TooManyBroken: (from items) more broken rows than allowed.
    """

    def __init__(
        self,
        sources: str | Path | Sequence[str | Path],
        processor: DynImgProcessor,
        *,
        root: str | Path | None = None,
        seed: int | None = None,
        max_broken: float = 0.05,
        quarantine: str | Path | None = None,
        keep_composed: bool = False,
        least_keep: float | None = None,
        keep_seed: int = 0,
    ) -> None:
        listed = [sources] if isinstance(sources, str | Path) else list(sources)
        self.rows = [row for source in listed for row in read_rows(source, root)]
        if not self.rows:
            raise ValueError(f"{', '.join(map(str, listed))}: no rows")
        self.processor, self.seed, self.max_broken = processor, seed, max_broken
        self.quarantine = None if quarantine is None else Path(quarantine)
        self.broken: dict[str, str] = {}
        if keep_composed and seed is not None:
            raise ValueError(
                "keep_composed=True keeps one choice of prompt frames; give random_prompts=False (seed=None)"
            )
        self._kept: dict[Path, list[DynImg]] | None = {} if keep_composed else None
        if least_keep is not None:
            most = processor.config.keep
            if not 0 < least_keep <= most:
                raise ValueError(f"least_keep={least_keep}: allowed are shares above 0, up to keep={most}")
            processor.with_keep(least_keep)  # raises here what would else stop a worker
        self.least_keep, self.keep_seed = least_keep, keep_seed
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # persistent workers see it change
        _check_some_exist(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self.rows):
            raise IndexError(f"row {index} of {len(self.rows)}")
        for step in range(len(self.rows)):
            row = self.rows[(index + step) % len(self.rows)]
            try:
                return self._sample(row)
            except (VideoError, UnidentifiedImageError, OSError) as error:
                self._put_aside(row, str(error))
        raise TooManyBroken(f"none of the {len(self.rows)} rows can be read")

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row, roughly (4 characters each, a picture as 4 DynImgs); nothing is opened."""
        config = self.processor.config
        of = {"video": config.tokens_per_video, "image": 4 * config.tokens_per_image, "text": 0}
        return [row.characters // 4 + of[row.kind] * len(row.media) for row in self.rows]

    @property
    def kinds(self) -> set[str]:
        """Which of "video", "image" and "text" the rows are."""
        return {row.kind for row in self.rows}

    def all_broken(self) -> dict[str, str]:
        """Broken rows met so far, {id: reason}; by all workers and ranks where there is a quarantine file."""
        return self.broken if self.quarantine is None else read_quarantine(self.quarantine)

    def set_epoch(self, epoch: int) -> None:
        """Draw other prompt frames than in other epochs."""
        self._epoch[0] = epoch

    def as_hf(self) -> datasets.Dataset:
        """As a datasets.Dataset, which TRL wants and which has the `length` column that grouping by length needs."""
        table = _Table.from_dict({"index": list(range(len(self))), "length": self.lengths})
        dataset = table.with_transform(self._transform)
        dataset.__dict__ |= {"set_epoch": self.set_epoch, "all_broken": self.all_broken}  # DynImgCallback asks for them
        return dataset

    def _transform(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        samples = [self[index] for index in batch["index"]]
        return {name: [sample[name] for sample in samples] for name in samples[0]}

    def _sample(self, row: Row) -> dict[str, Any]:
        paths = [open_path(row, index) for index in range(len(row.media))]
        videos, images = (paths, []) if row.kind == "video" else ([], paths)
        return {
            "id": row.id,
            "messages": row.messages,
            "videos": [self._compose(path, row) for path in videos],
            "images": [_picture(path) for path in images],
            "keep": self._keep(row),
        }

    def _compose(self, path: Path, row: Row) -> list[DynImg]:
        if self._kept is None:
            return self.processor.compose(path, seed=self._draw(row))
        if path not in self._kept:
            self._kept[path] = self.processor.compose(path)
        return self._kept[path]

    def _draw(self, row: Row) -> int | None:
        return None if self.seed is None else self._number(self.seed, row)

    def _keep(self, row: Row) -> float | None:
        if self.least_keep is None:
            return None
        return Random(self._number(self.keep_seed, row)).uniform(self.least_keep, self.processor.config.keep)

    def _number(self, seed: int, row: Row) -> int:
        return zlib.crc32(f"{seed}/{self._epoch.item()}/{row.id}".encode())

    def _put_aside(self, row: Row, reason: str) -> None:
        if row.id in self.broken:
            return
        self.broken[row.id] = reason
        if self.quarantine is not None:
            named = read_quarantine(self.quarantine)
            if row.id not in named:
                self.quarantine.parent.mkdir(parents=True, exist_ok=True)
                with self.quarantine.open("a", encoding="utf-8") as file:  # one short line: appended as a whole
                    file.write(json.dumps({"id": row.id, "reason": reason}) + "\n")
            self.broken = {**named, **self.broken}
        if len(self.broken) > self.max_broken * len(self.rows):
            shown = "\n".join(f"  {name}: {why}" for name, why in sorted(self.broken.items())[:20])
            raise TooManyBroken(
                f"{len(self.broken)} of {len(self.rows)} rows cannot be read, more than max_broken={self.max_broken} "
                f"allows:\n{shown}\nmend or remove them, or raise max_broken"
            )


class _Table(datasets.Dataset):
    """Tells `length` without making its rows: datasets 5 would send all of them through the transform."""

    def __getitem__(self, key: Any) -> Any:
        return self.data["length"].to_pylist() if key == "length" else super().__getitem__(key)


def read_quarantine(path: Path) -> dict[str, str]:
    """Broken rows named so far: {id: reason}."""
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    return {line["id"]: line["reason"] for line in lines}


def _picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _check_some_exist(rows: list[Row]) -> None:
    named = [(row, index) for row in rows for index in range(len(row.media)) if row.root is not None][:LOOKED_AT]
    if named and not any(open_path(row, index).exists() for row, index in named):
        raise FileNotFoundError(
            f"none of the first {len(named)} files is there, e.g. {open_path(*named[0])}; give data_root, the folder "
            "that the videos lie in"
        )
