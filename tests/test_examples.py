"""Every example script trains, and what it saves is an adapter that load() takes with a theta that moved."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from dynimg_plugin import describe_dynimg, load
from dynimg_plugin.tiny import write_tiny

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny("llava", tmp_path_factory.mktemp("base"))


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize("name", ["plain_loop", "hf_trainer", "trl_stock_collator"])
def test_the_script_trains_an_adapter(name, base, tmp_path):
    example(name).main(str(base), "motion_qa_mc:4", str(tmp_path), 2)
    model, _ = load(base, tmp_path)
    assert all(norm > 0 for norm in describe_dynimg(model).theta_norms.values())


@pytest.mark.parametrize("path", sorted((EXAMPLES / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_config_and_nothing_in_it_is_unknown(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.mixed_precision == "bf16"
    named = yaml.safe_load(path.read_text("utf-8"))
    assert {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED"}[path.stem] == named["distributed_type"]


def test_pictures_for_other_engines_are_the_dynimgs(base, tmp_path):
    script = example("images_for_other_engines")
    script.main(str(base), "motion_qa_mc:3", str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "dynimg.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 3
    for line in lines:
        user, assistant = line["messages"]
        assert user["content"].startswith("<image>" * 4 + "\n")
        assert user["content"].count("<image>") == len(line["images"]) == 4
        assert assistant["content"] in "ABCD"
    sizes = {Image.open(tmp_path / name).size for line in lines for name in line["images"]}
    assert sizes == {(96, 96)}
    assert json.loads((tmp_path / "dataset_info.json").read_text("utf-8"))["dynimg"]["file_name"] == "dynimg.jsonl"
