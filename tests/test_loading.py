"""load(): checkpoints, adapters and the errors that users meet."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from modelling import noise_video, patched, randomise_theta, rotary
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from dynimg_plugin import DynImgConfig, apply_dynimg, describe_dynimg, load, remove_dynimg
from dynimg_plugin.tiny import write_tiny

TARGETS = r".*language_model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny("llava_onevision", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """A peft adapter with non-zero theta and LoRA weights, as training would save it."""
    folder = tmp_path_factory.mktemp("adapter")
    config = DynImgConfig(num_images=2)
    model, processor = load(base, config=config)
    lora = LoraConfig(r=4, target_modules=TARGETS, modules_to_save=["rotary_emb", "multi_modal_projector"])
    trained = get_peft_model(model, lora)
    torch.manual_seed(0)
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
            assert "vision_tower" not in name
    trained.save_pretrained(folder)
    processor.config.save_pretrained(folder)
    inputs = processor(text="What?", videos=noise_video(), return_tensors="pt")
    with torch.no_grad():
        return folder, inputs, trained.eval()(**inputs).logits


def test_load_gives_a_patched_model_and_its_processor(base):
    model, processor = load(base)
    assert describe_dynimg(model).config == processor.config
    inputs = processor(text="What moves?", videos=[noise_video()], return_tensors="pt").to(model.device)
    answer = processor.batch_decode(model.generate(**inputs, max_new_tokens=4), skip_special_tokens=True)
    assert len(answer) == 1


def test_load_takes_dtype(base):
    model, processor = load(base, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    inputs = processor(text="What moves?", videos=[noise_video()], return_tensors="pt")
    assert model(**inputs).logits.dtype == torch.bfloat16


@pytest.mark.oldest
def test_an_adapter_comes_back_with_its_theta_and_its_config(base, adapter):
    folder, inputs, expected = adapter
    model, processor = load(base, folder)
    assert processor.config.num_images == 2
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)
    assert all(norm > 0 for norm in describe_dynimg(model).theta_norms.values())
    with pytest.raises(TypeError, match="unload"):
        remove_dynimg(model)
    with pytest.raises(TypeError, match="apply_dynimg\\(\\) on the base"):
        apply_dynimg(model)


def test_an_adapter_with_another_layout_is_refused(base, adapter):
    with pytest.raises(ValueError, match="the adapter was trained with"):
        load(base, adapter[0], config=DynImgConfig(num_images=4))


def test_an_adapter_of_another_base_is_refused(adapter, tmp_path):
    other = write_tiny("llava", tmp_path / "llava")
    with pytest.raises(ValueError, match=r"grid=27 was asked for|does not fit this base"):
        load(other, adapter[0])


def test_an_adapter_without_theta_is_refused(base, tmp_path):
    model, processor = load(base)
    get_peft_model(model, LoraConfig(r=4, target_modules=TARGETS)).save_pretrained(tmp_path)
    processor.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no theta_t"):
        load(base, tmp_path)


def test_an_adapter_without_its_sidecar_is_refused(base, adapter, tmp_path):
    folder = shutil.copytree(adapter[0], tmp_path / "adapter")
    (folder / "dynimg_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no dynimg_config\.json"):
        load(base, folder)


def test_a_folder_without_processor_or_config_says_so(base, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither a folder nor a hub id"):
        load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load(tmp_path)
    folder = shutil.copytree(base, tmp_path / "base")
    for name in ("processor_config.json", "preprocessor_config.json"):  # one or the other, by release
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="has no processor"):
        load(folder)


def test_an_unknown_family_is_refused_before_its_weights_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip-2"}))
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="'blip-2' is not supported"):
        load(tmp_path)


@pytest.mark.oldest
def test_theta_is_saved_and_found_in_a_full_checkpoint(tmp_path):
    model, processor = patched("llava")
    randomise_theta(model)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, _ = load(tmp_path)
    for name in ("theta_t", "theta_h", "theta_w"):
        assert torch.equal(getattr(rotary(loaded), name), getattr(rotary(model), name))


def test_odd_weights_are_told_but_theta_is_not(tmp_path, caplog):
    model, processor = patched("llava")
    randomise_theta(model)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    load(tmp_path)
    assert "theta" not in caplog.text
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "one.too.many": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    load(tmp_path)
    assert "1 unexpected keys: one.too.many" in caplog.text


def test_theta_without_its_config_or_with_another_is_refused(tmp_path):
    model, processor = patched("llava", DynImgConfig(num_images=2))
    randomise_theta(model)
    model.save_pretrained(tmp_path)
    processor.base.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds trained theta or slot embeddings: save the config"):
        load(tmp_path)
    processor.config.save_pretrained(tmp_path)
    assert load(tmp_path)[1].config.num_images == 2
    with pytest.raises(ValueError, match="ask for no other"):
        load(tmp_path, config=DynImgConfig(num_images=2, theta_scope="per_layer"))


@pytest.mark.parametrize("part", ["lora_B", "theta_h", "multi_modal_projector"])
def test_an_adapter_with_missing_parts_is_refused(base, adapter, tmp_path, part):
    folder = shutil.copytree(adapter[0], tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({n: v for n, v in tensors.items() if part not in n}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="does not fit this base"):
        load(base, folder)


def test_a_config_equal_to_the_adapters_is_taken(base, adapter):
    assert load(base, adapter[0], config=DynImgConfig(num_images=2))[1].config.num_images == 2


def test_the_description_shows_the_active_adapter(base, adapter):
    model, _ = load(base, adapter[0])
    with model.disable_adapter():
        assert set(describe_dynimg(model).theta_norms.values()) == {0}
    with pytest.raises(TypeError, match="take the adapter off first"):
        remove_dynimg(model.get_base_model())
    merged = model.merge_and_unload()
    assert all(norm > 0 for norm in describe_dynimg(merged).theta_norms.values())
    remove_dynimg(merged)
