"""Shared fixtures: clips made on the spot by PyAV's encoder, tiny random checkpoints, seeded arrays. No network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads only wait for each other

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from dynimg_plugin.families import built_in_families

with contextlib.suppress(ImportError):  # a GPU machine may have no PyAV
    import av  # noqa: F401  before lmms-eval imports decord where there is one, whose libvpx breaks PyAV's encoder

NEEDS = {"smolvlm": "num2words", "perception_lm": "timm"}  # what transformers' own classes of these families ask for
FAMILIES = tuple(
    pytest.param(name, marks=pytest.mark.skipif(find_spec(need) is None, reason=f"pip install {need}"))
    if (need := NEEDS.get(name))
    else name
    for name in built_in_families()
)
FEW = ("llava", "llava_onevision", "qwen3_vl", "gemma3", "glm4v")  # no two alike


def families_with(of_all: object, of_few: object) -> list[Any]:
    """Parameters (family, value): one value for every family, another for a few, to keep the tests short."""
    parameters = []
    for family in FAMILIES:
        name, marks = (family, ()) if isinstance(family, str) else (family.values[0], family.marks)
        values = (of_all, of_few) if name in FEW else (of_all,)
        parameters += [pytest.param(name, value, marks=marks) for value in values]
    return parameters


settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("deterministic")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("needs_cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and this torch sees none"))


def write_video(*args: Any, **kwargs: Any) -> Path:
    from dynimg_plugin.video.write import write_video as write  # a GPU machine may have no PyAV

    return write(*args, **kwargs)


def moving_square(count: int = 64, height: int = 120, width: int = 160) -> Iterator[np.ndarray]:
    """A red square that moves to the right over a fixed grey pattern."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(60, 140, (height // 8, width // 8, 1), dtype=np.uint8)
    background = np.broadcast_to(tiles, (*tiles.shape[:2], 3)).repeat(8, 0).repeat(8, 1)
    side = height // 4
    for index in range(count):
        frame = background.copy()
        left = index * (width - side) // max(1, count - 1)
        frame[side : 2 * side, left : left + side] = (250, 40, 40)
        yield frame


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 frames of 160 x 120 at 16 fps; six I-frames, one every 12 frames."""
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", moving_square(), fps=16, gop=12)


@pytest.fixture(scope="session")
def many_iframes_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 frames, every second one an I-frame: more than 4 DynImgs of 5 frames can use."""
    return write_video(tmp_path_factory.mktemp("clips") / "many.mp4", moving_square(), fps=16, gop=2)


@pytest.fixture(scope="session")
def one_iframe_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 frames, only the first one an I-frame."""
    return write_video(tmp_path_factory.mktemp("clips") / "one.mp4", moving_square(), fps=16, gop=250)


@pytest.fixture(scope="session")
def video_array() -> np.ndarray:
    """40 frames of noise, (40, 64, 80, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (40, 64, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], tuple[Any, Any]]:
    """family -> (model, processor), a copy of its own for every caller."""
    from dynimg_plugin.tiny import build_tiny

    built = cache(build_tiny)
    return lambda family: copy.deepcopy(built(family))
