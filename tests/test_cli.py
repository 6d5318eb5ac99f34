"""The `dynimg` command as a user types it: what it prints, what it writes, and one clear sentence for bad input."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration
from typer.testing import CliRunner

from dynimg_plugin import cli
from dynimg_plugin.families import family_module
from dynimg_plugin.tiny import Kit, write_tiny
from dynimg_plugin.video.write import write_video

DYNIMG = str(Path(sys.executable).with_name("dynimg"))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    frames = (np.full((48, 64, 3), 4 * i, np.uint8) for i in range(48))
    return write_video(tmp_path_factory.mktemp("cli") / "clip.mp4", frames, gop=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny("llava", tmp_path_factory.mktemp("tiny"))


def dynimg(*arguments: object):
    """In process: (exit code, standard output)."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_compose_writes_the_exact_pictures_and_a_record_of_every_frame(video, tmp_path):
    code, out = dynimg("compose", video, "-o", tmp_path / "out.png", "--json", tmp_path / "out.json")
    assert code == 0
    assert "4 DynImgs of 20 different frames, 12 of them I-frames (12 in the video)" in out
    assert Image.open(tmp_path / "out.png").size == (2 * 378 + 8, 2 * 378 + 8)
    content = json.loads((tmp_path / "out.json").read_text("utf-8"))
    frames = content["dynimgs"][0]["frames"]
    assert [frame["role"] for frame in frames] == ["key"] + ["prompt"] * 4
    assert [frame["t"] for frame in frames] == [0, -2, -1, 1, 2]
    assert frames[0]["rectangle"] == {"y": 0, "x": 0, "h": 280, "w": 378}
    assert {"pts_seconds", "is_iframe"} <= set(frames[0])
    times = [frame["pts_seconds"] for frame in frames]
    assert sorted(times[1:]) == times[1:]


@pytest.mark.parametrize("fusion", ["tokens", "after", "none"])
def test_compose_takes_the_ablations_and_other_towers(video, tmp_path, fusion):
    output = tmp_path / "out.png"
    code, _ = dynimg(
        "compose", video, "-o", output, "--annotate", "--grid", "--fusion", fusion, "--num-images", 2,
        "--num-prompts", 2, "--tower-grid", 24, "--sampling", "uniform", "--aspect", "keep", "--seed", 1,
    )  # fmt: skip
    assert code == 0
    assert Image.open(output).width == (3 if fusion == "after" else 2) * (2 * 336 + 8) - 8
    row = 8 * 14 if fusion == "tokens" else 0
    assert Image.open(output).height == (2 if fusion == "after" else 1) * (22 + 2 * (336 + row) + 8) - 8


def test_ask_answers_about_a_real_file(video, checkpoint):
    code, _ = dynimg("ask", video, "What moves?", "--model", checkpoint, "--device", "cpu", "--max-new-tokens", 3)
    assert code == 0
    code, _ = dynimg("ask", video, "What?", "--model", checkpoint, "-O", "fusion=after", "-O", "rope_4d=false")
    assert code == 0


def test_families_and_tiny(tmp_path):
    header, *rows = dynimg("families")[1].splitlines()
    assert header.split()[0] == "family"
    assert len(rows) == 16
    words = {row.split()[0]: " ".join(row.split()[1:]) for row in rows}
    assert words["llava_onevision"] == "model.get_image_features 144, pooled from 27 x 27 half built in"
    assert words["qwen3_vl"] == "model.get_image_features 144, its own grid half, M-RoPE built in"
    assert words["smolvlm"] == "model.get_image_features 64, pooled from 8 x 8 or 9 x 9 half built in"
    code, out = dynimg("tiny", tmp_path / "tiny", "--family", "llava_next")
    assert code == 0
    assert "random llava_next checkpoint" in out
    assert (tmp_path / "tiny" / "model.safetensors").is_file()


def test_doctor_finds_nothing_to_mend_here_and_names_each_package():
    code, out = dynimg("doctor")
    assert code == 0, out
    for name in ("transformers", "lmms-eval", "4D RoPE", "motion_qa_mc", "PyAV"):
        assert name in out


def test_doctor_names_the_remedy_of_a_missing_and_of_an_old_package(monkeypatch):
    from dynimg_plugin import doctor

    monkeypatch.setattr(doctor, "requires", lambda _: ["numpy>=99", "no-such-package>=1", "nothing; extra == 'dev'"])
    findings = list(doctor._packages())
    assert [finding.name for finding in findings] == ["numpy", "no-such-package"]
    assert "outside >=99" in str(findings[0])
    assert findings[1].fix == "pip install 'no-such-package>=1'"


def test_doctor_names_packages_that_do_not_go_together(monkeypatch):
    from dynimg_plugin import doctor

    wanted = {"datasets": ["huggingface_hub>=99", "numpy>=99", "peft>=99; extra == 'dev'", "accelerate>=0.1"]}
    monkeypatch.setattr(doctor, "requires", wanted.get)
    (finding,) = doctor._together()
    assert (finding.name, finding.value.partition(",")[0]) == ("datasets", "needs huggingface_hub>=99")
    assert finding.fix.startswith("pip install 'huggingface_hub==")


def write_with_complex_rope(folder: Path) -> None:
    """A LLaVA whose language model turns queries and keys by complex numbers: there is no (cos, sin) to wrap."""
    kit = Kit()
    text = kit.text("deepseek_v2") | {"num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 16}
    text |= {
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 2,
        "first_k_dense_replace": 2,
    }
    _, processor = family_module("llava").tiny(kit)
    config = LlavaConfig(vision_config=kit.clip_tower(), text_config=text, **kit.image_ids())
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def broken_inputs(folder: Path, video: Path, checkpoint: Path):
    """(arguments, what the sentence must hold)"""
    text = folder / "text.mp4"
    text.write_text("not a video")
    without = shutil.copytree(checkpoint, folder / "without")
    (without / "processor_config.json").unlink()
    complex_rope = folder / "complex"
    write_with_complex_rope(complex_rope)
    unknown = folder / "unknown"
    unknown.mkdir()
    (unknown / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (unknown / "processor_config.json").write_text("{}")
    return [
        (["compose", folder / "none.mp4"], "none.mp4: no such file"),
        (["compose", text], "text.mp4: cannot be read as a video"),
        (["compose", video, "--num-prompts", 5], "num_prompts=5 does not divide"),
        (["compose", video, "--fusion", "mix"], "fusion='mix' is not known; allowed: canvas, tokens, after, none"),
        (["ask", video, "What?", "--model", folder / "nothing"], "is neither a folder nor a hub id"),
        (["ask", video, "What?", "--model", without], "has no processor"),
        (["ask", video, "What?", "--model", unknown], "'gpt2' is not supported; supported: gemma3, "),
        (["ask", video, "What?", "--model", complex_rope], "DeepseekV2RotaryEmbedding cannot be wrapped"),
        (["ask", video, "What?", "--model", checkpoint, "-O", "fusionn=after"], "unknown DynImg option(s) fusionn"),
        (["ask", video, "What?", "--model", checkpoint, "-O", "fusion"], "not of the form name=value"),
        (["eval", "--model", without, "--tasks", "motion_qa"], "has no processor"),
        (["tiny", folder], "is not empty"),
        (["eval", "--model", checkpoint, "--tasks", "motion_qa", "-O", "fusion=a,b"], "fusion='a,b' is not known"),
        (["tiny", folder / "x", "--family", "gpt2"], "no tiny checkpoint for 'gpt2'; families: gemma3, "),
    ]


def test_bad_input_is_one_sentence_and_exit_code_2(video, checkpoint, tmp_path, monkeypatch, capsys):
    for arguments, sentence in broken_inputs(tmp_path, video, checkpoint):
        monkeypatch.setattr(sys, "argv", ["dynimg", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        error = capsys.readouterr().err
        assert stop.value.code == 2, arguments
        assert sentence in error, (arguments, error)
        assert "Traceback" not in error


def test_an_unknown_option_exits_with_2():
    result = subprocess.run([DYNIMG, "compose", "x.mp4", "--colour"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "No such option" in result.stderr


def test_help_is_instant_and_the_package_imports_no_torch():
    seconds = []
    for _ in range(3):  # CPU time, and the best of three: the machine may be busy
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([DYNIMG, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert 0 < min(seconds) < 1.0
    code = "import sys, dynimg_plugin, dynimg_plugin.cli; assert 'torch' not in sys.modules, sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, dynimg_plugin.evaluation.manifest; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
