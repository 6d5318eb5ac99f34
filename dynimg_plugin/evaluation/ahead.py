"""Compose videos ahead of the model, each once: neighbouring questions ask about the same file."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG
from typing import Any

from dynimg_plugin.composition import DynImg
from dynimg_plugin.evaluation.requests import Question
from dynimg_plugin.video import Clip


class ComposedVideos:
    """The DynImgs of the videos last asked for, least recently used first out.

    Args:
        compose: from a video to its DynImgs.
        keep: videos kept; a video is four pictures, 1.7 MB at 378 x 378.
        workers: threads that compose videos before they are asked for; 0 composes on demand.

    Attributes:
        count: videos composed so far.
    """

    def __init__(self, compose: Callable[[Any], list[DynImg]], *, keep: int = 8, workers: int = 1) -> None:
        self.count = 0
        self._compose = compose
        self._keep = max(1, keep)
        self._kept: OrderedDict[Any, Future[list[DynImg]]] = OrderedDict()
        self._pool = ThreadPoolExecutor(workers, "dynimg-compose") if workers else None

    def expect(self, video: Any) -> None:
        """Start composing a file that will be asked for."""
        key = _key(video)
        if key in self._kept:
            self._kept.move_to_end(key)
        elif self._pool is not None and key is not None:
            self._remember(key, self._pool.submit(self._made, video))

    def get(self, video: Any) -> list[DynImg]:
        """The DynImgs of a video; a VideoError of its composition is raised here."""
        key = _key(video)
        if key is None:
            return self._made(video)
        if key not in self._kept:
            future: Future[list[DynImg]] = Future()
            try:
                future.set_result(self._made(video))
            except ValueError as error:
                future.set_exception(error)
            self._remember(key, future)
        self._kept.move_to_end(key)
        return self._kept[key].result()

    def _made(self, video: Any) -> list[DynImg]:
        self.count += 1
        return self._compose(video)

    def _remember(self, key: Any, future: Future[list[DynImg]]) -> None:
        self._kept[key] = future
        while len(self._kept) > self._keep:
            self._kept.popitem(last=False)


def _key(video: Any) -> Any:
    """What makes two files the same: path, time of change, size and clip bounds; None for what is no file."""
    source, *bounds = video if isinstance(video, Clip) else (video,)
    if not isinstance(source, str | Path):
        return None
    try:
        state = Path(source).stat()
    except (OSError, ValueError):  # compose() says what is wrong with it
        return None
    if not S_ISREG(state.st_mode):
        return None
    return str(source), state.st_mtime_ns, state.st_size, *bounds


def ahead(questions: Iterable[Question], videos: ComposedVideos, depth: int) -> Iterator[Question]:
    """The questions in order, read as far ahead as `depth` different videos, which are announced to `videos`."""
    window: deque[Question] = deque()
    for question in questions:
        window.append(question)
        for video in _needed(question):
            videos.expect(video)
        while len({str(video) for waiting in window for video in _needed(waiting)}) > max(1, depth):
            yield window.popleft()
    yield from window


def _needed(question: Question) -> list[Any]:
    """The videos that must be read for an answer."""
    return [] if question.known is not None else question.videos
