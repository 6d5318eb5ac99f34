"""Training in processes of its own: two ranks on DDP and FSDP2, a run that is killed, Liger's fused rotary kernel."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from modelling import noise_video
from trainings import QUICK, largest_difference, losses, quick, talk, write_rows

from dynimg_plugin import describe_dynimg, load
from dynimg_plugin.tiny import build_tiny, write_tiny

TESTS = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TESTS), "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny("llava_onevision", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, clip):
    """Twelve rows, every other one text alone, so that one rank has a video where the other has none."""
    folder = tmp_path_factory.mktemp("rows")
    shutil.copy(clip, folder / "a.mp4")
    rows = [talk(f"How many is {i}?", "four", **({"video": "a.mp4"} if i % 2 else {})) for i in range(12)]
    return write_rows(folder / "rows.json", rows)


@pytest.fixture(scope="module")
def ranks(base, mixed, tmp_path_factory):
    """Both engines on two ranks in one launch, as torch.distributed.run starts them."""
    folder = tmp_path_factory.mktemp("ranks")
    model, processor = build_tiny("llava_onevision")
    model.to(torch.bfloat16).save_pretrained(folder / "bf16")
    processor.save_pretrained(folder / "bf16")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(TESTS / "rank_run.py"), base, folder / "bf16", mixed, folder]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads((folder / "found.json").read_text("utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [("ddp", {}), ("ddp_full", {"preset": "paper_full", "lora_r": 0})])
def test_two_ranks_equal_one_with_the_doubled_batch(ranks, base, mixed, tmp_path, name, options):
    folder, found = ranks
    assert found[name]["ranks"] == 2
    one = quick(base, tmp_path / name, data=str(mixed), max_steps=6, seed=2, per_device_train_batch_size=2, **options)
    assert found[name]["losses"] == pytest.approx(losses(one), abs=1e-4)
    assert largest_difference(folder / name, one.output) < 2e-3  # sums in another order, then six steps of Adam


@pytest.mark.slow
def test_fsdp2_trains_an_fp32_theta_beside_bf16_weights(ranks):
    folder, found = ranks
    assert found["fsdp"] == {"losses": found["fsdp"]["losses"], "type": "DTensor", "dtype": "torch.float32", "ranks": 2}
    assert len(found["fsdp"]["losses"]) == 3
    model, processor = load(folder / "bf16", folder / "fsdp")
    assert all(norm > 0 for norm in describe_dynimg(model).theta_norms.values())
    inputs = processor(text="What?", videos=noise_video(), return_tensors="pt")
    assert torch.isfinite(model(**inputs).logits).all()


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(base, tmp_path):
    options = {"data": "motion_qa_mc:6", "max_steps": 8, "save_steps": 2, "save_total_limit": None, "lora_dropout": 0.2}
    words = [f"{key}={json.dumps(value)}" for key, value in {**QUICK, **options, "base": str(base)}.items()]
    words += [f"output={tmp_path / 'killed'}"]
    command = [sys.executable, "-m", "dynimg_plugin.cli", "train", "lora_default", *words]
    run = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint-2" / "trainer_state.json").exists():
        assert run.poll() is None, run.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert not (tmp_path / "killed" / "adapter_model.safetensors").exists()
    again = quick(base, tmp_path / "killed", resume_from_checkpoint="auto", **options)
    straight = quick(base, tmp_path / "straight", **options)
    assert losses(again) == losses(straight)
    assert largest_difference(again.output, straight.output) == 0.0


LIGER = """
import sys
from pathlib import Path
from trainings import quick
from dynimg_plugin.ops import implementations
from dynimg_plugin.ops.native import Native
from liger_kernel.transformers import apply_liger_kernel_to_qwen2 as apply
implementations.load_native = lambda: Native(why="not here")  # it would take the kernel's place
for rope in (False, True):
    apply(rope=rope, cross_entropy=False, fused_linear_cross_entropy=False, rms_norm=False, swiglu=False)
    quick(Path(sys.argv[1]), Path(sys.argv[2]) / str(rope), data="motion_qa_mc:2", max_steps=1)
    print("trained with rope", rope)
"""


@pytest.mark.slow
def test_ligers_rotary_kernel_stops_the_run_and_goes_off(base, tmp_path):
    """The real kernel, run by Triton's interpreter; without rope the same run trains."""
    pytest.importorskip("liger_kernel", reason="liger-kernel, in [dev] on Linux, is not installed")
    command = [sys.executable, "-c", LIGER, base, tmp_path]
    environment = {**ENVIRONMENT, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "trained with rope False" in done.stdout, done.stderr
    assert "trained with rope True" not in done.stdout
    assert "liger_kernel_config={'rope': False}" in done.stderr
