"""`dynimg check`: what it finds, and that no weight is read for it."""

from __future__ import annotations

import json
import shutil

import pytest
from judge_server import JudgeServer
from paper_data import all_six, zero_shot
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from typer.testing import CliRunner

from dynimg_plugin import cli, load
from dynimg_plugin.evaluation.record import RunRecord, TaskRecord
from dynimg_plugin.evaluation.run import _check_judge
from dynimg_plugin.tiny import write_tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return all_six(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny("llava_onevision", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def adapter(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    model, processor = load(checkpoint)
    target = r".*language_model\.layers\.\d+\.self_attn\.(q|v)_proj"
    get_peft_model(model, LoraConfig(r=2, target_modules=target, modules_to_save=["rotary_emb"])).save_pretrained(
        folder
    )
    processor.save_pretrained(folder)
    return folder


def check(*arguments):
    result = CliRunner().invoke(cli.app, ["check", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_all_that_is_amiss_is_found_at_once(root, checkpoint, adapter, tmp_path, monkeypatch):
    """Missing videos, a dead judge, an adapter of another base: told before any weight is read."""

    def refuse(*arguments, **options):
        raise AssertionError("weights are read")

    other = write_tiny("llava", tmp_path / "other")
    with JudgeServer() as server:
        url = server.url
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    with pytest.raises(AssertionError, match="weights are read"):
        load(other)
    code, out = check(
        "--tasks", "dynimg_paper", "--data", root, "--model", other, "--adapter", adapter,
        "--judge-url", url, "--judge-model", "gone", "--missing", tmp_path / "missing.txt",
    )  # fmt: skip
    assert code == 1, out
    assert "4 of 13157 questions, 2 of 3 videos, split test, pllava prompts" in out
    assert "2 of 2994" not in out
    assert "gone at http://127.0.0.1" in out
    assert "not reached" in out
    assert "FIX  adapter              does not fit" in out
    missing = (tmp_path / "missing.txt").read_text().split()
    assert [path.rpartition("/")[2] for path in missing] == ["vid3.mp4", "clip.mp4"]


def test_three_missing_videos_are_counted_and_listed(tmp_path):
    zero_shot(tmp_path / "TGIF_Zero_Shot_QA", [("a", "x"), ("b", "x"), ("c", "x"), ("a", "y")])
    listed = tmp_path / "lists" / "missing.txt"
    code, out = check("--tasks", "tgif_qa", "--data", tmp_path, "--missing", listed)
    assert code == 1
    assert "4 of 13691 questions, 0 of 3 videos" in out
    assert listed.read_text().splitlines() == [str(tmp_path / "TGIF_Zero_Shot_QA" / f"{name}.mp4") for name in "abc"]


def test_a_wrong_root_and_an_unknown_prompt_are_one_sentence_each(root, tmp_path):
    code, out = check("--tasks", "msvd_qa,dynimg_mvbench", "--data", tmp_path)
    assert code == 1
    assert out.count("its data cannot be read") == 2
    assert f"{tmp_path} holds no folder named MVBench" in out
    with pytest.raises(FileNotFoundError, match="data_root=/nowhere is no folder"):
        check("--tasks", "msvd_qa", "--data", "/nowhere")
    code, out = check("--tasks", "msvd_qa", "--data", root, "--prompts", "pllva")
    assert (code, "prompts='pllva' is not known" in out) == (1, True)


def test_a_slip_of_the_pen_in_a_task_is_no_task_of_somebody_else():
    code, out = check("--tasks", "mvsd_qa,activitynetqa")
    assert (code, "did you mean msvd_qa?" in out, out.count("FIX")) == (1, True, 1)


def test_what_is_well_is_said_to_be(checkpoint, adapter, tmp_path):
    with JudgeServer() as server:
        code, out = check(
            "--tasks", "motion_qa,mvbench", "--model", checkpoint, "--adapter", adapter, "--judge-url", server.url,
            "--judge-model", "loopback", "--output-path", tmp_path / "new" / "results",
        )  # fmt: skip
    assert code == 0, out
    for text in ("ok   motion_qa_mc         draws its own videos", "not a task of this package", "all fit",
                 "grid 27 x 27, patch 4", "loopback at", "GB free", f"free at {tmp_path}"):  # fmt: skip
        assert text in out
    assert not list(tmp_path.iterdir())


def odd_adapters(folder, adapter):
    """(what is done to the adapter, what is said)"""
    file = folder / "adapter_model.safetensors"

    def rename(old, new):
        tensors = {name.replace(old, new): tensor for name, tensor in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})

    def drop(part):
        save_file({n: t for n, t in load_file(file).items() if part not in n}, file, {"format": "pt"})

    return [
        (lambda: rename("q_proj", "k_proj"), "has no place"),
        (lambda: drop("layers.1"), "is missing"),
        (lambda: drop("theta"), "holds no theta_t, theta_h, theta_w"),
        (file.unlink, "adapter_model.safetensors is missing"),
        (lambda: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
    ]


@pytest.mark.parametrize("number", range(5))
def test_adapters_that_do_not_fit_are_told_from_their_headers(checkpoint, adapter, tmp_path, number):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    damage, message = odd_adapters(folder, adapter)[number]
    damage()
    code, out = check("--tasks", "motion_qa", "--model", checkpoint, "--adapter", folder)
    assert code == 1
    assert message in out


def test_an_adapter_of_other_options_or_another_width_is_told(checkpoint, adapter, tmp_path):
    common = ["--tasks", "motion_qa", "--adapter", adapter, "--model"]
    code, out = check(*common, checkpoint, "-O", "theta_scope=per_layer")
    assert (code, "has shape" in out) == (1, True)
    wide = shutil.copytree(checkpoint, tmp_path / "wide")
    config = json.loads((wide / "config.json").read_text())
    config["text_config"]["hidden_size"] = 128
    (wide / "config.json").write_text(json.dumps(config))
    code, out = check(*common, wide)
    assert (code, "the base wants" in out) == (1, True)


def test_a_checkpoint_that_cannot_be_used_is_told(checkpoint, tmp_path):
    code, out = check("--tasks", "motion_qa", "--model", tmp_path / "nothing")
    assert (code, "is neither a folder nor a hub id" in out) == (1, True)
    cut = shutil.copytree(checkpoint, tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, out = check("--tasks", "motion_qa", "--model", cut)
    assert (code, "model.safetensors cannot be read" in out) == (1, True)
    (cut / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model.safetensors", "b": "part2.safetensors"}}'
    )
    assert "part2.safetensors is missing" in check("--tasks", "motion_qa", "--model", cut)[1]
    (cut / "model.safetensors.index.json").unlink()
    weights.unlink()
    assert "*.safetensors is missing" in check("--tasks", "motion_qa", "--model", cut)[1]


def test_eval_stops_before_the_model_where_data_or_judge_are_amiss(root, checkpoint, tmp_path):
    def evaluate(*arguments):
        command = ["eval", "--model", checkpoint, "--output-path", tmp_path, *arguments]
        return CliRunner().invoke(cli.app, [str(argument) for argument in command]).exception

    assert "holds no folder named MSVD" in str(evaluate("--tasks", "msvd_qa", "--data", tmp_path))
    unknown = evaluate("--tasks", "msvd_qa", "--data", root, "--prompts", "pllva")
    assert "prompts='pllva' is not known" in str(unknown)
    with JudgeServer() as server:
        dead = server.url
    arguments = ["--tasks", "tgif_qa", "--data", root, "--judge-model", "x", "--judge-url", dead]
    assert "or run with --predict-only and judge later" in str(evaluate(*arguments))


def test_eval_fails_where_too_many_answers_have_no_verdict(tmp_path):
    for share, fails in ((0.01, False), (0.02, True)):
        tasks = {"msvd_qa": TaskRecord({}, 100, judge_failed=share), "tgif_qa": TaskRecord({}, 1)}
        RunRecord("now", "llava_dynimg", tasks).save(tmp_path / "now_dynimg_record.json")
        if not fails:
            _check_judge(tmp_path / "now_results.json")
            continue
        with pytest.raises(ValueError, match=r"judge_failed above 1%: msvd_qa 2\.0%"):
            _check_judge(tmp_path / "now_results.json")
