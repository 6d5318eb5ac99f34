"""Broken files and loads by the thousand, loaders in parallel: frames or a VideoError, and nothing leaks."""

import gc
import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_video_corpus import KINDS, write

from dynimg_plugin import DynImgConfig, VideoError, compose
from dynimg_plugin.video import VideoLimits

CORRUPTIONS, SECONDS_PER_FILE = 2_000, 10
NAMES = ["faststart.mp4", "fragment_per_key.mp4", *(f"b_frames.{end}" for end in ("mkv", "ts", "flv"))]
NAMES += ["vp9.webm", "mpeg4.avi"]
SMALL = DynImgConfig(num_images=2)
LIMITS = VideoLimits(timeout_seconds=5, max_pixels=2**20)


def corrupted(content, rng):
    """`content` with flipped bytes, a part cut out, garbage put in, or its end missing; sometimes several of them."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at, length = rng.randrange(len(data)), rng.choice([1, 4, 32, 400])
        kind = rng.choice(["flip", "cut", "insert", "random", "end"])
        if kind == "flip":
            for place in rng.sample(range(len(data)), min(len(data), rng.choice([1, 3, 20, 200]))):
                data[place] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "insert":
            data[at:at] = rng.randbytes(length)
        elif kind == "random":
            data[at : at + length] = rng.randbytes(len(data[at : at + length]))
        else:
            del data[max(at, 1) :]
        if not data:
            return b""
    return bytes(data)


def outcome(content, seed):
    """ "frames", "told" (frames, and damage is recorded), or "refused"."""
    policy = random.Random(seed).choice(["auto", "auto", "uniform", "motion"])
    try:
        dynimgs = compose(content, DynImgConfig(num_images=2, sampling=policy), limits=LIMITS)
    except VideoError as error:
        return "refused" if str(error) == f"{error.path}: {error.reason}" else "refused without a reason"
    record = dynimgs[0].record
    assert record["frames"] == 10
    return "told" if record["damaged"] or record["corrupt_frames"] else "frames"


def fuzz(folder, seeds, log):
    """The worker: one line per seed before it is tried, and one after; what goes wrong leaves the first one alone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # FFmpeg and the encoders comment on every broken packet
    originals = [Path(folder, name).read_bytes() for name in NAMES]
    with Path(log).open("a", buffering=1) as lines:
        for seed in seeds:
            lines.write(f"{seed} started\n")
            signal.alarm(SECONDS_PER_FILE)  # ends the process, even inside FFmpeg
            result = outcome(corrupted(originals[seed % len(NAMES)], random.Random(seed)), seed)
            signal.alarm(0)
            lines.write(f"{seed} {result}\n")


def fuzz_in_a_process(folder, seeds, log):
    """Outcomes by seed; a process that dies names its seed and another one goes on behind it."""
    context, results, deaths = multiprocessing.get_context("spawn"), {}, {}
    while seeds:
        process = context.Process(target=fuzz, args=(folder, seeds, log))
        process.start()
        process.join()
        results |= {int(seed): result for seed, result in map(str.split, Path(log).read_text().splitlines())}
        died = [seed for seed in seeds if results.get(seed) == "started"]
        deaths |= dict.fromkeys(died, f"died with {process.exitcode}")
        if process.exitcode == 0 or not died:
            break
        seeds = [seed for seed in seeds if seed not in results]
    return results | deaths


@pytest.mark.slow
def test_thousands_of_broken_files_end_in_frames_or_a_video_error(tmp_path):
    for name in NAMES:
        write(tmp_path / name, count=24, height=48, width=64)
    results = fuzz_in_a_process(tmp_path, list(range(CORRUPTIONS)), tmp_path / "log")
    assert len(results) == CORRUPTIONS
    wrong = {seed: result for seed, result in results.items() if result not in {"frames", "told", "refused"}}
    assert not wrong, wrong
    counts = Counter(results.values())
    assert min(counts.values()) > CORRUPTIONS // 20, counts


@pytest.mark.parametrize("seed", range(60))
def test_a_few_broken_files_end_in_frames_or_a_video_error(seed, originals):
    assert outcome(corrupted(originals[seed % len(NAMES)], random.Random(seed)), seed)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return [write(folder / name, count=24, height=48, width=64).read_bytes() for name in NAMES]


def resident_megabytes():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def load_once(paths, number):
    try:
        compose(paths[number % len(paths)], SMALL, limits=LIMITS)
    except VideoError:
        return


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see memory and open files")
def test_a_thousand_loads_take_no_memory_and_no_file_descriptor(tmp_path):
    paths = [write(tmp_path / name, count=24, height=48, width=64) for name in NAMES]
    for number, path in enumerate(list(paths)):
        broken = tmp_path / f"broken_{path.name}"
        broken.write_bytes(corrupted(path.read_bytes(), random.Random(number)))
        paths.append(broken)
    for number in range(100):
        load_once(paths, number)
    memory, files = resident_megabytes(), open_files()
    for number in range(1000):
        load_once(paths, number)
    assert open_files() == files
    assert resident_megabytes() - memory < 10


@pytest.mark.parametrize("source", ["missing", "broken", "limited", "read half"])
def test_no_file_stays_open_whatever_happens(source, originals, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no video" if source == "broken" else originals[0])
    files = open_files()
    for _ in range(5):
        limits = VideoLimits(max_packets=5) if source == "limited" else None
        if source == "read half":
            compose(path, SMALL)
        else:
            with pytest.raises(VideoError):
                compose(tmp_path / "none.mp4" if source == "missing" else path, SMALL, limits=limits)
    gc.collect()
    assert open_files() == files


def digests(paths):
    return [hashlib.sha256(dynimg.image.tobytes()).hexdigest() for path in paths for dynimg in compose(path, SMALL)]


def digest(path):
    return digests([path])


SPAWNED = pytest.param("spawn", 2, marks=pytest.mark.slow)  # each imports torch anew


@pytest.mark.parametrize(("method", "workers"), [("fork", 1), ("fork", 4), SPAWNED])
def test_workers_see_the_frames_of_the_parent(method, workers, tmp_path):
    paths = [write(tmp_path / name, count=24, height=48, width=64) for name in KINDS if name.startswith("b_frames")]
    expected = digests(paths)  # the parent has used the decoder before it forks
    with multiprocessing.get_context(method).Pool(workers) as pool:
        found = pool.map_async(digest, paths * 2, chunksize=1).get(timeout=120)
    assert [value for values in found for value in values] == expected * 2


def test_threads_see_the_same_frames_too(tmp_path):
    paths = [write(tmp_path / name, count=24, height=48, width=64) for name in NAMES]
    expected, start = digests(paths), time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(digest, paths * 4))
    assert [value for values in found for value in values] == expected * 4
    assert time.monotonic() - start < 30
