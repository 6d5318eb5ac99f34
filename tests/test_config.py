"""DynImgConfig: the paper's numbers, refusals that name the allowed values, and its file."""

import json
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from dynimg_plugin.config import CONFIG_NAME, DynImgConfig

OTHER = DynImgConfig(
    num_images=2,
    num_prompts=6,
    fusion="tokens",
    prompt_attention="apart",
    rope_4d=False,
    theta_scope="per_layer",
    t_mode="time",
    pool="plain",
    pooled_size=6,
    sampling="uniform",
    aspect="keep",
    grid=24,
    patch_size=16,
)
COUNT = "whole number of at least 1"


def test_defaults_are_the_papers():
    config = DynImgConfig()
    assert (config.num_images, config.num_prompts, config.fusion, config.rope_4d) == (4, 4, "canvas", True)
    assert (config.tokens_per_image, config.tokens_per_video, config.canvas_size) == (144, 576, 378)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("num_images", 0, COUNT),
        ("num_images", 2.5, COUNT),
        ("num_images", True, COUNT),
        ("num_images", "4", COUNT),
        ("num_images", None, COUNT),
        ("num_prompts", 0, COUNT),
        ("num_prompts", 5, "1, 2, 3, 4, 6, 12"),
        ("num_prompts", 24, "1, 2, 3, 4, 6, 12"),
        ("fusion", "mix", "canvas, tokens, after, none"),
        ("prompt_attention", "none", "joint, apart"),
        ("fusion", None, "canvas, tokens, after, none"),
        ("rope_4d", 1, "True, False"),
        ("rope_4d", "yes", "True, False"),
        ("theta_scope", "layer", "shared, per_layer"),
        ("t_mode", "seconds", "slot, time"),
        ("pool", "max", "region, plain"),
        ("pooled_size", -12, COUNT),
        ("sampling", "random", "auto, iframe, uniform"),
        ("aspect", "crop", "stretch, auto, keep"),
        ("grid", 0, COUNT),
        ("grid", 27.0, COUNT),
        ("patch_size", -1, COUNT),
    ],
)
def test_a_wrong_value_is_refused_with_the_allowed_ones(name, value, allowed):
    with pytest.raises(ValueError, match=name) as error:
        DynImgConfig(**{name: value})
    assert f"{name}={value!r}" in str(error.value)
    assert allowed in str(error.value)


def test_prompts_are_checked_against_the_given_pooled_size():
    assert DynImgConfig(pooled_size=10, num_prompts=5).num_prompts == 5
    with pytest.raises(ValueError, match=r"num_prompts=4 .* allowed: 1, 2, 5, 10"):
        DynImgConfig(pooled_size=10)


def test_an_option_of_tokens_alone_is_refused_elsewhere():
    assert DynImgConfig(fusion="tokens", prompt_attention="apart").prompt_attention == "apart"
    with pytest.raises(ValueError, match="belongs to fusion='tokens'; fusion is 'canvas'"):
        DynImgConfig(prompt_attention="apart")


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        DynImgConfig().num_images = 8


@pytest.mark.parametrize(("fusion", "frames"), [("canvas", 7), ("tokens", 7), ("after", 7), ("none", 1)])
def test_frames_per_image_counts_the_key_and_its_prompts(fusion, frames):
    assert DynImgConfig(num_prompts=6, fusion=fusion).frames_per_image == frames


def test_derived_numbers_follow_the_options():
    config = DynImgConfig(num_images=16, pooled_size=6, num_prompts=3, grid=24, patch_size=14)
    assert (config.tokens_per_image, config.tokens_per_video, config.canvas_size) == (36, 576, 336)


def test_on_tower_fills_in_grid_and_patch_size_and_keeps_the_rest():
    assert replace(OTHER, grid=None, patch_size=None).on_tower(grid=24, patch_size=16) == OTHER


@pytest.mark.parametrize("name", ["grid", "patch_size"])
def test_on_tower_refuses_another_tower_than_the_one_asked_for(name):
    found = {"grid": 24, "patch_size": 16, name: 30}
    with pytest.raises(ValueError, match=f"{name}={getattr(OTHER, name)} was asked for.*has 30"):
        OTHER.on_tower(**found)


def test_from_dict_restores_what_to_dict_gives():
    assert DynImgConfig.from_dict(OTHER.to_dict()) == OTHER


def test_from_dict_lists_the_known_options_for_an_unknown_one():
    with pytest.raises(ValueError, match="num_image, pooling; known: ") as error:
        DynImgConfig.from_dict({"num_image": 4, "pooling": "region"})
    assert all(field.name in str(error.value).split("known: ")[1] for field in fields(DynImgConfig))


@pytest.mark.parametrize("config", [DynImgConfig(), OTHER], ids=["defaults", "other"])
def test_a_saved_config_reads_back_equal(config, tmp_path):
    folder = tmp_path / "new" / "folder"
    assert config.save_pretrained(folder) == folder / CONFIG_NAME
    assert DynImgConfig.from_pretrained(folder) == config


def test_a_folder_without_config_is_named_with_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=CONFIG_NAME) as error:
        DynImgConfig.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("version", [2, None])
def test_a_file_of_another_format_version_is_refused(version, tmp_path):
    path = DynImgConfig().save_pretrained(tmp_path)
    values = json.loads(path.read_text())
    del values["format_version"]
    path.write_text(json.dumps(values if version is None else {**values, "format_version": version}))
    with pytest.raises(ValueError, match=f"format_version {version}, this release reads 1"):
        DynImgConfig.from_pretrained(tmp_path)
