"""On day 0 a patched model is the pretrained model; with theta it differs, trains, and can be undone."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from threading import Event

import pytest
import torch
from modelling import (
    AXES,
    FAMILIES,
    FEW,
    enable_checkpointing,
    families_with,
    fingerprint,
    fresh,
    noise_video,
    ordinary_image,
    patched,
    randomise_theta,
    rotary,
    sharpen,
    unpatched_logits,
)

from dynimg_plugin import DynImgConfig, apply_dynimg, describe_dynimg, remove_dynimg
from dynimg_plugin.compat import takes_outputs
from dynimg_plugin.families import encode_llava

QUESTION = "What moves in this video?"


def one(processor, text: str = QUESTION, seed: int = 0):
    return processor(text=text, videos=noise_video(seed), return_tensors="pt")


@pytest.mark.oldest
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "scope"), [(torch.float32, "shared"), (torch.bfloat16, "per_layer")])
@torch.no_grad()
def test_theta_zero_gives_the_unpatched_models_bits(family, dtype, scope):
    model, processor = patched(family, DynImgConfig(theta_scope=scope))
    plain = fresh(family)[0].to(dtype)
    model.to(dtype)
    for theta in rotary(model).thetas:
        theta.requires_grad_(True)
    inputs = one(processor)
    with torch.enable_grad():  # the wrapper's own path, not the short cut of a model without gradients
        logits = model(**inputs).logits
    assert torch.equal(logits, unpatched_logits(plain, model, inputs))
    assert rotary(model).theta_t.dtype == torch.float32


@pytest.mark.parametrize(("family", "scope"), families_with("shared", "per_layer"))
def test_all_three_thetas_get_a_gradient(family, scope):
    model, processor = patched(family, DynImgConfig(theta_scope=scope))
    inputs = one(processor)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    for name in AXES:
        assert getattr(rotary(model), name).grad.norm() > 0, name


@pytest.mark.oldest
@pytest.mark.parametrize(("family", "scope"), families_with("shared", "per_layer"))
def test_generate_with_cache_equals_without_and_position_matters(family, scope):
    model, processor = patched(family, DynImgConfig(theta_scope=scope))
    sharpen(model)
    randomise_theta(model)
    inputs = one(processor)
    settings = {"max_new_tokens": 6, "output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    cached = model.generate(**inputs, **settings)
    full = model.generate(**inputs, **settings, use_cache=False)
    control = model.generate(**inputs, **settings, rope4d_coords=torch.zeros(*inputs["input_ids"].shape, 3))
    assert torch.equal(cached.sequences, full.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(full.logits), atol=1e-4, rtol=0)
    assert (cached.logits[0] - control.logits[0]).abs().max() > 0.03


@pytest.mark.parametrize(("family", "side"), families_with("left", "right"))
@torch.no_grad()
def test_a_padded_batch_equals_its_rows(family, side):
    model, processor = patched(family)
    sharpen(model)
    randomise_theta(model)
    texts = ["What?", "What moves from the left to the right in this video?", "No video here."]
    videos = [noise_video(0), noise_video(1), None]
    batch = processor(text=texts, videos=videos, padding=True, padding_side=side, return_tensors="pt")
    logits = model(**batch).logits
    for row, (text, video) in enumerate(zip(texts, videos, strict=True)):
        single = processor(text=text, videos=[video], return_tensors="pt")
        kept = batch["attention_mask"][row].bool()
        torch.testing.assert_close(logits[row][kept], model(**single).logits[0], atol=5e-4, rtol=0)


@pytest.mark.parametrize("family", FEW)
@torch.no_grad()
def test_a_left_padded_batch_generates_what_its_rows_generate(family):
    model, processor = patched(family)
    sharpen(model)
    randomise_theta(model)
    texts, videos = ["What?", "What moves in this video and where?"], [noise_video(0), noise_video(1)]
    batch = processor(text=texts, videos=videos, padding=True, padding_side="left", return_tensors="pt")
    answers = model.generate(**batch, max_new_tokens=5)[:, batch["input_ids"].shape[1] :]
    for answer, text, video in zip(answers, texts, videos, strict=True):
        single = processor(text=text, videos=video, return_tensors="pt")
        alone = model.generate(**single, max_new_tokens=5)[0, single["input_ids"].shape[1] :]
        assert torch.equal(answer[: len(alone)], alone)


@pytest.mark.oldest
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_remove_restores_the_model_bit_for_bit(family):
    model, base = fresh(family)
    inputs = ordinary_image(base)
    before, keys = model(**inputs).logits, list(model.state_dict())
    state = fingerprint(model)
    apply_dynimg(model, DynImgConfig(theta_scope="per_layer"))
    randomise_theta(model)
    assert fingerprint(model) != state
    remove_dynimg(model)
    assert torch.equal(model(**inputs).logits, before)
    assert list(model.state_dict()) == keys
    assert fingerprint(model) == state
    with pytest.raises(ValueError, match="is not patched"):
        remove_dynimg(model)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_ordinary_images_go_the_models_own_way(family):
    model, base = fresh(family)
    inputs = ordinary_image(base)
    before = model(**inputs).logits
    apply_dynimg(model)
    randomise_theta(model)
    assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_pixels_and_time_arrive(family):
    model, processor = patched(family)
    sharpen(model)
    randomise_theta(model)

    def logits(video):
        return model(**processor(text=QUESTION, videos=video, return_tensors="pt")).logits[0, -1]

    black, white = torch.zeros(20, 48, 64, 3, dtype=torch.uint8), torch.full((20, 48, 64, 3), 255, dtype=torch.uint8)
    clip = noise_video()
    assert (logits(black) - logits(white)).abs().max() > 1e-3
    assert (logits(clip) - logits(clip.flip(0))).abs().max() > 1e-3


@torch.no_grad()
def test_two_models_in_one_process_do_not_touch_each_other():
    first, processor = patched("llava_onevision")
    second, _ = patched("llava_onevision", DynImgConfig(theta_scope="per_layer"))
    untouched = fresh("llava_onevision")[0]
    inputs = one(processor)
    before = second(**inputs).logits
    randomise_theta(first)
    assert not torch.equal(first(**inputs).logits, before)
    assert torch.equal(second(**inputs).logits, before)
    assert type(untouched.model.language_model.rotary_emb).__name__ == "Qwen2RotaryEmbedding"


@torch.no_grad()
def test_a_deep_copy_uses_its_own_weights():
    model, processor = patched("llava_onevision")
    inputs = one(processor)
    before = model(**inputs).logits
    copy = deepcopy(model)
    randomise_theta(model)
    for parameter in (*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()):
        parameter.zero_()
    assert torch.equal(copy(**inputs).logits, before)
    assert describe_dynimg(copy).theta_norms == {"t": 0, "h": 0, "w": 0}


def test_text_only_batches_keep_theta_in_the_graph_and_the_logits_as_they_were():
    model, processor = patched("llava_onevision")
    randomise_theta(model)
    inputs = processor(text="No video.", return_tensors="pt")
    logits = model(**inputs).logits
    assert torch.equal(logits, fresh("llava_onevision")[0](**inputs).logits)
    logits.sum().backward()
    assert rotary(model).theta_t.grad is not None


@pytest.mark.parametrize("scope", ["shared", "per_layer"])
def test_gradient_checkpointing_gives_the_same_gradients(scope):
    grads = []
    for checkpointing in (False, True):
        model, processor = patched("llava_onevision", DynImgConfig(theta_scope=scope))
        randomise_theta(model)
        model.train()
        if checkpointing:
            enable_checkpointing(model)
        inputs = one(processor)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        grads.append(torch.stack([getattr(rotary(model), name).grad for name in AXES]))
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "internvl", "gemma3"])
@torch.no_grad()
def test_beam_search_keeps_rows_and_their_videos_together(family):
    model, processor = patched(family)
    sharpen(model)
    randomise_theta(model)
    texts, videos = ["What moves?", "What moves?"], [noise_video(0), noise_video(1)]
    settings = {"max_new_tokens": 4, "num_beams": 3, "output_scores": True, "return_dict_in_generate": True}
    batch = processor(text=texts, videos=videos, padding=True, return_tensors="pt")
    scores = model.generate(**batch, **settings).sequences_scores
    for score, text, video in zip(scores, texts, videos, strict=True):
        single = processor(text=text, videos=video, return_tensors="pt")
        torch.testing.assert_close(model.generate(**single, **settings).sequences_scores[0], score, atol=1e-4, rtol=0)


@torch.no_grad()
def test_chunked_prefill_is_refused_without_coordinates_and_right_with_them():
    model, processor = patched("llava_onevision")
    sharpen(model)
    randomise_theta(model)
    inputs = processor(text=QUESTION, videos=noise_video(), return_tensors="pt", return_coordinates=True)
    settings = {"max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True}
    expected = model.generate(**inputs, **settings)
    if not takes_outputs(type(model.model)):  # transformers 4 hands all pictures to the first chunk, with any model
        with pytest.raises(ValueError, match="do not match"):
            model.generate(**inputs, **settings, prefill_chunk_size=100)
        return
    chunked = model.generate(**inputs, **settings, prefill_chunk_size=100)
    torch.testing.assert_close(torch.stack(chunked.logits), torch.stack(expected.logits), atol=1e-4, rtol=0)
    del inputs["rope4d_coords"]
    derived = model.generate(**inputs, **settings)
    assert torch.equal(torch.stack(derived.logits), torch.stack(expected.logits))
    with pytest.raises(ValueError, match="return_coordinates=True"):
        model.generate(**inputs, **settings, prefill_chunk_size=100)


@pytest.mark.parametrize("family", ["llava", "llava_onevision"])
@torch.no_grad()
def test_real_time_is_another_t_than_slots(family):
    slot, processor = patched(family)
    time, timed = patched(family, DynImgConfig(t_mode="time"))
    for model in (slot, time):
        sharpen(model)
        randomise_theta(model)
    inputs = one(timed)
    assert "dynimg_times" in inputs
    difference = time(**inputs).logits - slot(**one(processor)).logits
    assert difference.abs().max() > 0.01
    settings = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(time.generate(**inputs, **settings), time.generate(**inputs, **settings, use_cache=False))
    del inputs["dynimg_times"]
    with pytest.raises(ValueError, match="needs dynimg_times"):
        time(**inputs)


@pytest.mark.parametrize("fusion", ["canvas", "after", "none"])
@pytest.mark.parametrize("images", [1, 4, 16])
@torch.no_grad()
def test_every_ablation_runs_with_144_tokens_per_dynimg(fusion, images):
    config = DynImgConfig(fusion=fusion, num_images=images, pool="plain" if images == 1 else "region")
    model, processor = patched("llava", config)
    inputs = one(processor)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 144 * images
    assert model(**inputs).logits.isfinite().all()


def test_rope_off_leaves_the_rotary_embedding_alone():
    model, processor = patched("llava_onevision", DynImgConfig(rope_4d=False))
    assert type(rotary(model)).__name__ == "Qwen2RotaryEmbedding"
    assert model(**one(processor)).logits.isfinite().all()
    assert "off" in str(describe_dynimg(model))
    remove_dynimg(model)


def test_applying_twice_is_a_no_op_and_another_config_is_refused():
    model, _ = patched("llava")
    wrapper = rotary(model)
    assert apply_dynimg(model, DynImgConfig()) is model
    assert rotary(model) is wrapper
    with pytest.raises(ValueError, match="remove_dynimg"):
        apply_dynimg(model, DynImgConfig(num_images=1))


def test_an_unknown_family_is_named_with_the_supported_ones():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16))
    with pytest.raises(ValueError, match=r"'gpt2' is not supported; supported: gemma3, .*, llava, llava_next"):
        apply_dynimg(model)


def test_a_failed_patch_leaves_nothing_behind():
    model = fresh("llava")[0]
    model.model.language_model.rotary_emb = torch.nn.Linear(1, 1)
    state = fingerprint(model)
    with pytest.raises(ValueError, match="Linear cannot be wrapped"):
        apply_dynimg(model)
    assert fingerprint(model) == state


def test_pixel_values_of_another_fusion_are_refused():
    model, _ = patched("llava", DynImgConfig(fusion="after"))
    _, processor = patched("llava", DynImgConfig(fusion="none"))
    with pytest.raises(ValueError, match="fusion='after' has 5"):
        model(**one(processor))


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_next_video", "llava_onevision"])
@torch.no_grad()
def test_dynimgs_get_the_layer_that_the_config_names(family):
    model, processor = patched(family)
    core, pixels = model.model, one(processor)["pixel_values"][0]
    layer, strategy = core.config.vision_feature_layer, core.config.vision_feature_select_strategy
    hidden = core.vision_tower(pixels, output_hidden_states=True).hidden_states[layer]
    expected = core.multi_modal_projector(hidden[:, 1:] if strategy == "default" else hidden)
    assert torch.equal(encode_llava(core, pixels), expected)


@torch.no_grad()
def test_an_error_in_the_forward_leaves_no_coordinates_behind():
    model, processor = patched("llava")
    inputs = one(processor)
    with pytest.raises(ValueError, match="do not match"):
        model(**{**inputs, "pixel_values": inputs["pixel_values"][:, :2]})
    assert rotary(model).coordinates is None
    assert model(**inputs).logits.isfinite().all()


@torch.no_grad()
def test_threads_on_one_model_do_not_mix_their_coordinates():
    model, processor = patched("llava_onevision")
    sharpen(model)
    randomise_theta(model)
    batches = [one(processor, text) for text in ("What?", "What moves from here to there in this video, and when?")]
    alone = [model(**inputs).logits for inputs in batches]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda i: forward(model, batches[i % 2]), range(8)))
    assert all(torch.equal(logits, alone[i % 2]) for i, logits in enumerate(together))


@torch.no_grad()
def test_a_call_that_fails_beforehand_takes_no_coordinates_from_another_threads():
    model, processor = patched("llava_onevision")
    sharpen(model)
    randomise_theta(model)
    inputs = one(processor)
    alone, in_tower, may_go = model(**inputs).logits, Event(), Event()

    def hold(*_):
        in_tower.set()
        assert may_go.wait(60)

    with ThreadPoolExecutor(1) as pool:
        hook = model.model.vision_tower.register_forward_hook(hold)
        held = pool.submit(forward, model, inputs)
        assert in_tower.wait(60)
        with pytest.raises(ValueError, match="takes no dynimg_times"):
            model(**inputs, dynimg_times=torch.zeros(1, 4, 5))
        may_go.set()
        assert torch.equal(held.result(), alone)
    hook.remove()


def forward(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@torch.no_grad()
def test_coordinates_arrive_however_the_core_is_called():
    model, processor = patched("llava_onevision")
    sharpen(model)
    randomise_theta(model)
    inputs = one(processor)
    by_name = model.model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).last_hidden_state
    by_place = model.model(inputs["input_ids"], inputs["pixel_values"]).last_hidden_state
    assert torch.equal(by_name, by_place)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(ValueError, match="give rope4d_coords too"):
        model(inputs_embeds=embeds, pixel_values=inputs["pixel_values"])


@torch.no_grad()
def test_explicit_coordinates_must_reach_the_last_dynimg():
    model, processor = patched("llava")
    inputs = one(processor)
    with pytest.raises(ValueError, match="end before the prompt's last DynImg"):
        model(**inputs, rope4d_coords=torch.zeros(1, 50, 3))
    with pytest.raises(ValueError, match="takes no dynimg_times"):
        model(**inputs, dynimg_times=torch.zeros(1, 4, 5))


def test_theta_stays_in_the_graph_when_only_one_axis_trains():
    model, processor = patched("llava")
    rotary(model).theta_t.requires_grad_(False)
    model(**processor(text="No video.", return_tensors="pt")).logits.sum().backward()
    assert rotary(model).theta_h.grad is not None


def test_a_patch_that_is_refused_changes_nothing():
    model = fresh("llava")[0]
    model.prepare_inputs_for_generation = model.prepare_inputs_for_generation
    state = fingerprint(model)
    with pytest.raises(ValueError, match="was replaced by other code"):
        apply_dynimg(model)
    assert fingerprint(model) == state


def test_a_patched_model_says_that_it_cannot_be_pickled():
    with pytest.raises(TypeError, match=r"save_pretrained\(\)"):
        pickle.dumps(patched("llava")[0])


@torch.no_grad()
def test_a_data_parallel_replica_uses_its_own_tower():
    model, processor = patched("llava")
    inputs = one(processor)
    expected = model(**inputs).logits
    replica = model._replicate_for_data_parallel()
    core = deepcopy(model.model)
    core.__dict__["get_image_features"] = model.model.__dict__["get_image_features"]  # as replicas share it
    replica._modules = {**model._modules, "model": core}
    for parameter in model.model.vision_tower.parameters():
        parameter.zero_()
    assert torch.equal(replica(**inputs).logits, expected)


@torch.no_grad()
def test_two_videos_in_a_prompt_each_take_their_own_clock():
    config = DynImgConfig(t_mode="time")
    _, processor = patched("llava", config)
    short, long = noise_video(0), noise_video(1).repeat(3, 1, 1, 1)
    both = processor(text="First <image> then <image>", videos=[short, long], return_tensors="pt")["dynimg_times"][0]
    alone = [one_video["dynimg_times"][0] for one_video in (
        processor(text=QUESTION, videos=video, return_tensors="pt") for video in (short, long)
    )]  # fmt: skip
    assert torch.equal(both, torch.cat(alone))
