"""DynImgProcessor: text and videos in, model inputs out, with the checkpoint's own tokenizer and normalisation."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing

from dynimg_plugin import DynImgConfig, DynImgProcessor, VideoError, compose
from dynimg_plugin.coordinates import frame_times, token_coordinates

QUESTION = "What moves?"
SIDE = {"llava": 96, "llava_next": 96, "llava_next_video": 96, "llava_onevision": 110}
FAMILIES = tuple(SIDE)  # the others' own ways: test_families.py
WITH_VIDEO_TOKEN = ("llava_next_video", "llava_onevision")


@pytest.fixture
def processor_of(tiny):
    """(family, **options) -> the family's processor with these DynImgConfig options."""
    return lambda family, **options: DynImgProcessor(tiny(family)[1], DynImgConfig(**options))


@pytest.fixture
def processor(processor_of):
    return processor_of("llava_onevision")


def visual_tokens(processor, inputs):
    return [ids.count(processor.image_token_id) for ids in torch.as_tensor(inputs["input_ids"]).tolist()]


def same_inputs(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def readable(processor, inputs):
    """The text of the first row, every run of visual tokens as one <image>."""
    text = processor.tokenizer.decode(torch.as_tensor(inputs["input_ids"])[0])
    return text.replace("<image>" * processor.config.tokens_per_video, "<image>")


def talk(**video):
    return [{"role": "user", "content": [{"type": "video", **video}, {"type": "text", "text": QUESTION}]}]


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    @pytest.mark.oldest
    def test_a_video_takes_576_tokens_and_four_images(self, family, processor_of, video_array):
        processor = processor_of(family)
        inputs = processor(text=QUESTION, videos=video_array, return_tensors="pt")
        assert visual_tokens(processor, inputs) == [576]
        assert inputs["pixel_values"].shape == (1, 4, 3, SIDE[family], SIDE[family])
        assert inputs["pixel_values"].dtype == torch.float32
        assert inputs["attention_mask"].all()

    @pytest.mark.parametrize(("fusion", "images"), [("canvas", 3), ("after", 9), ("none", 3)])
    def test_every_fusion_has_the_same_tokens(self, fusion, images, family, processor_of, video_array):
        processor = processor_of(family, fusion=fusion, num_images=3, num_prompts=2)
        inputs = processor(text=QUESTION, videos=video_array, return_tensors="pt")
        assert visual_tokens(processor, inputs) == [432]
        assert inputs["pixel_values"].shape == (1, images, 3, SIDE[family], SIDE[family])

    def test_the_image_token_stands_for_the_whole_video_where_it_was_written(self, family, processor_of, video_array):
        processor = processor_of(family)
        inputs = processor(text=f"See <image> and say: {QUESTION}", videos=video_array, return_tensors="pt")
        assert readable(processor, inputs) == f"See <image> and say: {QUESTION}"

    def test_a_bare_question_is_put_into_the_chat_template(self, family, processor_of, video_array):
        processor = processor_of(family)
        inputs = processor(text=QUESTION, videos=video_array, return_tensors="pt")
        template = processor.apply_chat_template(talk(), add_generation_prompt=True)
        assert readable(processor, inputs) == template
        assert template.count("<image>") == 1
        assert template.endswith("assistant\n")

    def test_normalisation_is_that_of_the_base_processor(self, family, processor_of, video_array):
        processor, side = processor_of(family), SIDE[family]
        image = Image.fromarray(video_array[0]).resize((side, side))
        base = processor.base.image_processor(images=image, return_tensors="pt")["pixel_values"]
        base = base.flatten(0, -4)[0]  # any-resolution processors: the first tile is the whole image
        ours = processor(text=QUESTION, images=[image] * 4, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(ours, base.expand(1, 4, 3, side, side), atol=1e-5, rtol=1e-5)

    def test_precomposed_dynimgs_equal_the_video_bit_for_bit(self, family, processor_of, video_array):
        processor = processor_of(family)
        from_video = processor(text=QUESTION, videos=video_array, return_tensors="pt")
        dynimgs = compose(video_array, processor.config)
        for images in (dynimgs, [dynimg.image for dynimg in dynimgs], [np.asarray(d.image) for d in dynimgs]):
            assert same_inputs(processor(text=QUESTION, images=images, return_tensors="pt"), from_video)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_a_padded_batch_holds_its_single_rows(self, side, family, processor_of, video_array):
        processor = processor_of(family)
        texts, videos = [QUESTION, f"Look closely. {QUESTION}"], [video_array, video_array[::-1].copy()]
        batch = processor(text=texts, videos=videos, padding=True, padding_side=side, return_tensors="pt")
        assert visual_tokens(processor, batch) == [576, 576]
        for row, (text, video) in enumerate(zip(texts, videos, strict=True)):
            single = processor(text=text, videos=video, return_tensors="pt")
            mask = batch["attention_mask"][row].bool()
            assert torch.equal(batch["input_ids"][row][mask], single["input_ids"][0])
            assert torch.equal(batch["pixel_values"][row], single["pixel_values"][0])
        shorter = batch["attention_mask"][0]
        assert shorter[0 if side == "left" else -1] == 0

    def test_a_saved_processor_reads_back_with_its_config(self, family, processor_of, video_array, tmp_path):
        processor = processor_of(family, num_images=2, num_prompts=6)
        processor.save_pretrained(tmp_path)
        loaded = DynImgProcessor.from_pretrained(tmp_path)
        assert loaded.config == processor.config
        assert type(loaded.base) is type(processor.base)
        before, after = (p(text=QUESTION, videos=video_array, return_tensors="pt") for p in (processor, loaded))
        assert same_inputs(before, after)

    def test_the_chat_template_is_the_bases_with_videos_as_images(self, family, processor_of):
        processor = processor_of(family)
        as_image = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
        expected = processor.base.apply_chat_template(as_image, add_generation_prompt=True)
        assert processor.apply_chat_template(talk(video="clip.mp4"), add_generation_prompt=True) == expected

    def test_the_chat_template_composes_the_videos_that_it_names(self, family, processor_of, clip):
        processor = processor_of(family)
        expected = processor(text=QUESTION, videos=clip, return_tensors="pt")
        for item in ({"video": str(clip)}, {"path": str(clip)}, {"url": str(clip)}):
            options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
            assert same_inputs(processor.apply_chat_template(talk(**item), **options), expected)


@pytest.mark.parametrize("family", WITH_VIDEO_TOKEN)
def test_the_video_token_stands_for_a_video_too(family, processor_of, video_array):
    processor = processor_of(family)
    with_video, with_image = (
        processor(text=f"{token}\n{QUESTION}", videos=video_array, return_tensors="pt")
        for token in ("<video>", "<image>")
    )
    assert same_inputs(with_video, with_image)


def test_grid_and_patch_size_come_from_the_checkpoint(processor_of):
    for family, grid in (("llava", 24), ("llava_onevision", 27)):
        config = processor_of(family).config
        assert (config.grid, config.patch_size) == (grid, 4)


def test_a_config_for_another_tower_is_refused(tiny):
    with pytest.raises(ValueError, match=r"grid=27 was asked for.*has 24"):
        DynImgProcessor(tiny("llava")[1], DynImgConfig(grid=27))


@pytest.mark.parametrize(("part", "named"), [("tokenizer", "image_processor"), ("image_processor", "tokenizer")])
def test_a_part_of_a_processor_is_refused_with_what_it_lacks(part, named, tiny):
    with pytest.raises(ValueError, match=f"no {named}.*AutoProcessor"):
        DynImgProcessor(getattr(tiny("llava")[1], part))


def test_images_below_the_towers_size_are_padded_by_their_edge_and_not_resized(processor, video_array):
    pixels = processor(text=QUESTION, videos=video_array, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(pixels[..., 108:, :], pixels[..., 107:108, :].expand(4, 3, 2, 110))
    assert torch.equal(pixels[..., 108:], pixels[..., 107:108].expand(4, 3, 110, 2))


def test_the_tower_sees_the_pixels_of_the_dynimgs(processor, video_array):
    pixels = processor(text=QUESTION, videos=video_array, return_tensors="pt")["pixel_values"][0, :, :, :108, :108]
    mean, std = (torch.tensor(getattr(processor.image_processor, f"image_{name}")) for name in ("mean", "std"))
    restored = 255 * (pixels.movedim(1, -1) * std + mean)
    expected = np.stack([np.asarray(dynimg.image) for dynimg in compose(video_array, processor.config)])
    assert np.array_equal(restored.round().byte().numpy(), expected)


def test_rows_without_a_video_may_be_mixed_in(processor, video_array):
    texts = ["No video here.", QUESTION, "Nor here."]
    inputs = processor(text=texts, videos=[None, video_array, None], padding=True, return_tensors="pt")
    assert visual_tokens(processor, inputs) == [0, 576, 0]
    assert inputs["pixel_values"].shape[0] == 1


def test_text_alone_is_left_as_it_is(processor):
    inputs = processor(text=QUESTION, return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert torch.equal(inputs["input_ids"], processor.tokenizer(QUESTION, return_tensors="pt")["input_ids"])


def test_two_videos_of_one_prompt_take_the_places_of_their_tokens(processor, clip, video_array):
    text = "First <image> then <image>: which is longer?"
    inputs = processor(text=text, videos=[clip, video_array], return_tensors="pt")
    assert visual_tokens(processor, inputs) == [1152]
    assert processor.tokenizer.decode(inputs["input_ids"][0]) == text.replace("<image>", "<image>" * 576)
    singles = [processor(text=QUESTION, videos=v, return_tensors="pt")["pixel_values"] for v in (clip, video_array)]
    assert torch.equal(inputs["pixel_values"], torch.cat(singles, 1))


def test_each_precomposed_dynimg_may_have_a_token_of_its_own(processor, video_array):
    images = compose(video_array, processor.config)
    four, one = (processor(text="<image>" * count, images=images, return_tensors="pt") for count in (4, 1))
    assert same_inputs(four, one)


def test_precomposed_dynimgs_come_one_list_per_prompt(processor, video_array):
    images = compose(video_array, processor.config)
    batch = processor(
        text=[QUESTION, "Hi.", QUESTION], images=[images, None, images], padding=True, return_tensors="pt"
    )
    assert visual_tokens(processor, batch) == [576, 0, 576]
    assert torch.equal(batch["pixel_values"][0], batch["pixel_values"][1])


@pytest.mark.parametrize("size", [(50, 50), (378, 378), (108, 110), (109, 109)])
def test_an_image_of_another_size_is_refused_with_the_right_one(size, processor):
    with pytest.raises(ValueError, match=f"{size[1]} x {size[0]} pixels.* takes 1 of 108 x 108"):
        processor(text=QUESTION, images=[Image.new("RGB", size)] * 4)


def test_a_number_of_images_per_dynimg_that_the_fusion_does_not_have_is_refused(processor, video_array):
    apart = compose(video_array, replace(processor.config, fusion="after"))
    with pytest.raises(ValueError, match=r"has 5 image\(s\).*fusion='canvas' takes 1"):
        processor(text=QUESTION, images=apart)


@pytest.mark.parametrize("options", [{"fusion": "none"}, {"num_prompts": 6}], ids=str)
def test_a_dynimg_with_other_prompts_than_the_config_is_refused(options, processor, video_array):
    other = compose(video_array, replace(processor.config, **options))
    with pytest.raises(ValueError, match="compose it with this processor's config"):
        processor(text=QUESTION, images=other)


@pytest.mark.parametrize(
    "image", [np.zeros((108, 108), np.uint8), np.zeros((3, 108, 108), np.float32)], ids=["grey", "float"]
)
def test_a_bare_array_that_is_no_rgb_image_is_refused(image, processor):
    with pytest.raises(ValueError, match="allowed: RGB uint8"):
        processor(text=QUESTION, images=[[image] * 4])


@pytest.mark.parametrize("tokens", [3, 8])
def test_tokens_that_do_not_share_the_dynimgs_evenly_are_refused(tokens, processor, video_array):
    with pytest.raises(ValueError, match=rf"holds {tokens} <image> token\(s\) but 4 DynImgs"):
        processor(text="<image>" * tokens, videos=video_array)


def test_a_token_without_a_video_is_refused(processor):
    with pytest.raises(ValueError, match=r"holds 1 <image> token\(s\) but 0 DynImgs"):
        processor(text=f"<image>\n{QUESTION}")


def test_a_token_in_a_row_without_a_video_is_refused(processor, video_array):
    with pytest.raises(ValueError, match=r"holds 1 <image> token\(s\) but 0 DynImgs"):
        processor(text=[QUESTION, f"<image>\n{QUESTION}"], videos=[video_array, None], padding=True)


@pytest.mark.parametrize(("videos", "texts"), [(1, 2), (3, 2), (2, 3)])
def test_one_video_per_prompt_is_needed(videos, texts, processor, video_array):
    with pytest.raises(ValueError, match=rf"{videos} visual\(s\) came with {texts} prompt\(s\)"):
        processor(text=[QUESTION] * texts, videos=[video_array] * videos)


def test_rows_with_different_numbers_of_dynimgs_are_refused(processor, video_array):
    images = compose(video_array, processor.config)
    with pytest.raises(ValueError, match="2 and 4 DynImgs"):
        processor(text=[QUESTION] * 2, images=[images[:2], images], padding=True)


def test_videos_and_images_together_are_refused(processor, video_array):
    with pytest.raises(ValueError, match="not both"):
        processor(text=QUESTION, videos=video_array, images=compose(video_array, processor.config))


def test_missing_text_is_refused(processor, video_array):
    with pytest.raises(ValueError, match="text is missing"):
        processor(videos=video_array)


def test_a_video_that_cannot_be_read_is_named(processor, tmp_path):
    with pytest.raises(VideoError, match="no such file") as error:
        processor(text=QUESTION, videos=str(tmp_path / "missing.mp4"))
    assert error.value.path == str(tmp_path / "missing.mp4")


@pytest.mark.parametrize("length", [20, 300, 580])
def test_truncation_that_cuts_visual_tokens_is_refused(length, processor, video_array):
    with pytest.raises(ValueError, match="visual tokens where its DynImgs need 576; raise max_length"):
        processor(text=QUESTION, videos=video_array, truncation=True, max_length=length)


def test_truncation_that_leaves_the_visual_tokens_is_allowed(processor, video_array):
    text = f"<image>{QUESTION * 20}"
    inputs = processor(text=text, videos=video_array, truncation=True, max_length=600, return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 600)
    assert visual_tokens(processor, inputs) == [576]


def test_the_chat_template_takes_a_batch_and_gives_one_text_each(processor):
    texts = processor.apply_chat_template([talk(video="a.mp4"), talk(video="b.mp4")])
    assert texts == [processor.apply_chat_template(talk(video="a.mp4"))] * 2


def test_the_chat_template_composes_a_batch_of_frames_in_memory(processor, video_array):
    options = {"tokenize": True, "return_dict": True, "padding": True, "return_tensors": "pt"}
    system = {"role": "system", "content": "Be brief."}
    batch = processor.apply_chat_template([[system, *talk(video=video_array)], [system]], **options)
    assert visual_tokens(processor, batch) == [576, 0]
    assert batch["pixel_values"].shape[:2] == (1, 4)


def test_the_chat_template_hands_processor_kwargs_on(processor, video_array):
    talks, settings = [talk(video=video_array), [{"role": "user", "content": QUESTION}]], {"padding": "max_length"}
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(talks, processor_kwargs={**settings, "max_length": 700}, **options)
    assert inputs["input_ids"].shape == (2, 700)
    assert visual_tokens(processor, inputs) == [576, 0]


def test_the_chat_template_takes_precomposed_dynimgs_as_image_items(processor, video_array):
    dynimgs = compose(video_array, processor.config)
    content = [*({"type": "image", "image": dynimg} for dynimg in dynimgs), {"type": "text", "text": QUESTION}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
    assert visual_tokens(processor, inputs) == [576]
    expected = processor(text=QUESTION, videos=video_array, return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"], expected)


def test_the_chat_template_opens_the_picture_files_of_image_items(processor, video_array, tmp_path):
    content = []
    for index, dynimg in enumerate(compose(video_array, processor.config)):
        dynimg.image.save(tmp_path / f"{index}.png")
        content.append({"type": "image", "path": str(tmp_path / f"{index}.png")})
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
    expected = processor(text=QUESTION, videos=video_array, return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"], expected)


def test_the_chat_template_without_return_dict_gives_the_ids(processor, clip):
    ids = processor.apply_chat_template(talk(video=clip), tokenize=True, return_tensors="pt")
    assert ids.shape[0] == 1
    assert (ids == processor.image_token_id).sum() == 576


def test_the_chat_template_refuses_to_tokenize_a_video_item_that_names_no_video(processor):
    with pytest.raises(ValueError, match=r"<image> token\(s\) but 0 DynImgs"):
        processor.apply_chat_template(talk(), tokenize=True, return_dict=True)


def test_the_chat_template_passes_other_variables_on_as_the_base_does(processor):
    template = "{{ mood }}: {{ messages[0]['content'][1]['text'] }}"
    assert processor.apply_chat_template(talk(), chat_template=template, mood="calm") == f"calm: {QUESTION}"


def test_a_template_that_writes_the_first_token_does_not_get_it_twice(tiny, video_array):
    base = tiny("llava")[1]
    base.tokenizer.add_special_tokens({"bos_token": "<s>"})
    first = base.tokenizer.bos_token_id
    base.tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", first)])
    base.chat_template = "<s>" + base.chat_template
    processor = DynImgProcessor(base)
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(talk(video=video_array), **options)
    assert (inputs["input_ids"] == first).sum() == 1


def test_real_times_are_those_of_the_frames(processor_of, clip):
    processor = processor_of("llava_onevision", t_mode="time")
    inputs = processor(text=["Hi.", QUESTION], videos=[None, clip], padding=True, return_tensors="pt")
    seconds = [[frame.pts_seconds for frame in dynimg.frames] for dynimg in compose(clip, processor.config)]
    assert inputs["dynimg_times"].shape == (1, 4, 5)
    assert torch.equal(inputs["dynimg_times"][0], frame_times(seconds))


def test_slots_need_no_times(processor, clip):
    assert "dynimg_times" not in processor(text=QUESTION, videos=clip)


def test_real_times_of_bare_pictures_are_refused(processor_of):
    processor = processor_of("llava_onevision", t_mode="time")
    with pytest.raises(ValueError, match="needs the frames' times"):
        processor(text=QUESTION, images=[Image.new("RGB", (108, 108))] * 4)


@pytest.mark.parametrize("t_mode", ["slot", "time"])
@pytest.mark.parametrize("tensors", [None, "pt"])
def test_coordinates_can_be_asked_for(tensors, t_mode, processor_of, clip, video_array):
    processor = processor_of("llava_onevision", t_mode=t_mode)
    options = {"padding": True, "return_coordinates": True, "return_tensors": tensors}
    inputs = processor(text=[QUESTION, "Hi.", f"So, {QUESTION}"], videos=[clip, None, video_array], **options)
    ids = torch.as_tensor(inputs["input_ids"])
    expected = token_coordinates(ids, processor.image_token_id, processor.table, inputs.get("dynimg_times"))
    coordinates = torch.as_tensor(inputs["rope4d_coords"])
    assert torch.equal(coordinates, expected)
    assert coordinates.shape == (*ids.shape, 3)
    assert (coordinates[ids != processor.image_token_id] == 0).all()


def test_without_return_tensors_ids_are_lists(processor, video_array):
    inputs = processor(text=[QUESTION, "Hi."], videos=[video_array, None])
    assert [type(ids) for ids in inputs["input_ids"]] == [list, list]
    assert len(inputs["input_ids"][0]) > len(inputs["input_ids"][1])


def test_all_outputs_have_the_type_of_return_tensors(processor_of, video_array):
    processor = processor_of("llava_onevision", t_mode="time")
    options = {"return_coordinates": True, "return_tensors": "np"}
    inputs = processor(text=QUESTION, videos=video_array, **options)
    assert {name: type(value) for name, value in inputs.items()} == dict.fromkeys(inputs, np.ndarray)


def test_a_seed_changes_the_frames_and_can_be_repeated(processor, video_array):
    drawn = [processor(text=QUESTION, videos=video_array, seed=s, return_tensors="pt") for s in (None, 1, 1, 2)]
    assert same_inputs(drawn[1], drawn[2])
    assert not same_inputs(drawn[0], drawn[1])
    assert not same_inputs(drawn[1], drawn[3])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))], ids=["deepcopy", "pickle"])
def test_a_copy_for_another_worker_gives_the_same_inputs(copied, processor, video_array):
    first, second = (p(text=QUESTION, videos=video_array, return_tensors="pt") for p in (processor, copied(processor)))
    assert same_inputs(first, second)


def test_decoding_is_the_tokenizers(processor):
    ids = processor.tokenizer(["left", "right"])["input_ids"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["left", "right"]
    assert processor.decode(ids[0]) == "left"


@pytest.mark.parametrize("tokens", [2, 4])
def test_one_video_is_never_split_over_several_tokens(tokens, processor, video_array):
    with pytest.raises(ValueError, match=rf"holds {tokens} <image> token\(s\) but 4 DynImgs in 1 group"):
        processor(text="a <image> b" * tokens, videos=video_array)


def test_dynimgs_of_two_videos_take_one_token_each(processor, video_array):
    groups = [compose(video_array, processor.config), compose(video_array[::-1].copy(), processor.config)]
    inputs = processor(text="<image> and <image>", images=[groups], return_tensors="pt")
    expected = processor(
        text="<image> and <image>", videos=[video_array, video_array[::-1].copy()], return_tensors="pt"
    )
    assert same_inputs(inputs, expected)


def test_a_list_of_picture_paths_is_one_video_as_in_compose(processor, video_array, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for path, frame in zip(paths, video_array, strict=False):
        Image.fromarray(frame).save(path)
    inputs = processor(text=QUESTION, videos=paths, return_tensors="pt")
    assert same_inputs(inputs, processor(text=QUESTION, videos=video_array[:20], return_tensors="pt"))


@pytest.mark.parametrize("videos", [5, 3.5])
def test_what_is_no_video_is_named(videos, processor):
    with pytest.raises(ValueError, match="neither a video or DynImg"):
        processor(text=QUESTION, videos=videos)


def test_unknown_arguments_are_refused(processor, video_array):
    with pytest.raises(TypeError, match="takes no do_rescale"):
        processor(text=QUESTION, videos=video_array, do_rescale=False)
