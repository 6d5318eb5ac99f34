"""A token budget: which cells are kept, and that all of a model follows: placeholders, coordinates, cache, training."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from modelling import (
    AXES,
    FAMILIES,
    fingerprint,
    fresh,
    noise_video,
    ordinary_image,
    patched,
    randomise_theta,
    rotary,
    sharpen,
)

from dynimg_plugin import DynImgConfig, DynImgLayout, DynImgProcessor, apply_dynimg, describe_dynimg, remove_dynimg
from dynimg_plugin.budget import choose_cells, spread_cells, thinned
from dynimg_plugin.cli_options import pairs
from dynimg_plugin.config import KeepPolicy
from dynimg_plugin.families import find_patch
from dynimg_plugin.mrope import placed, starts

POLICIES = get_args(KeepPolicy)
TEXTS = ["What?", "What moves from the left to the right in this video?", "No video here."]


def budget(keep: float, policy: str = "motion", **others) -> tuple[DynImgConfig, DynImgLayout]:
    config = DynImgConfig(keep=keep, keep_policy=policy, grid=27, patch_size=14, **others)
    return config, DynImgLayout.from_config(config)


def kept(cells: torch.Tensor, keep: float, policy: str, **others) -> torch.Tensor:
    config, layout = budget(keep, policy, **others)
    return choose_cells(cells, layout, config)


@pytest.mark.parametrize("policy", ["motion", "similarity"])
def test_mixed_precision_chooses_what_full_precision_does(policy):
    torch.manual_seed(0)
    cells = torch.randn(2, 144, 1000)
    cells[1] = cells[1, :1]  # all alike
    with torch.autocast("cpu", torch.bfloat16):
        mixed = kept(cells, 0.4, policy)
    assert torch.equal(mixed, kept(cells, 0.4, policy))
    assert all(len(set(row)) == len(row) for row in mixed.tolist())


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("keep", "number"), [(0.001, 1), (0.1, 14), (0.4, 58), (0.999, 144), (1.0, 144)])
def test_so_many_cells_of_every_dynimg_are_kept_in_order(policy, keep, number):
    assert budget(keep)[0].tokens_per_image == number
    chosen = kept(noise(3, 144, 8), keep, policy)
    assert chosen.shape == (3, number)
    assert (chosen.diff(dim=1) > 0).all()
    assert chosen.min() >= 0
    assert chosen.max() < 144


@pytest.mark.parametrize("policy", POLICIES)
def test_a_dynimg_gets_the_same_cells_in_any_company_and_scale(policy):
    cells = noise(3, 144, 8)
    together = kept(cells, 0.4, policy)
    assert torch.equal(torch.cat([kept(one[None], 0.4, policy) for one in cells]), together)
    assert torch.equal(kept(100 * cells, 0.4, policy), together)


@pytest.mark.parametrize("fusion", ["canvas", "after"])
def test_motion_keeps_prompts_that_differ_from_their_key_frame_and_key_cells_that_no_prompt_repeats(fusion):
    layout = budget(1.0)[1]
    cells = torch.ones(1, 12, 12, 4) * torch.tensor([1.0, 2, 3, 4])
    prompts = [region.cells for region in layout.regions[1:]]
    at = {(prompt.y + 1, prompt.x + 2) for prompt in prompts}  # the middle row, the last column
    key = {(row, column) for row in (3, 4, 5) for column in (8, 9, 10, 11)}
    for row, column in sorted(at)[:3]:
        cells[0, row, column] = torch.tensor([-1.0, 0, 1, 0])

    def places(number):
        chosen = kept(cells.flatten(1, 2), number / 144, "motion", fusion=fusion)
        return {divmod(cell, 12) for cell in chosen[0].tolist()}

    assert places(3) == set(sorted(at)[:3])
    assert not key <= places(16)  # the fourth prompt repeats them
    cells[0, sorted(at)[3][0], sorted(at)[3][1]] = torch.tensor([-1.0, 0, 1, 0])
    assert places(16) == at | key


@pytest.mark.parametrize("number", [5, 58, 143])
def test_motion_spreads_evenly_what_it_keeps_of_a_still_clip(number):
    still = torch.ones(2, 144, 8)
    assert torch.equal(kept(still, number / 144, "motion"), kept(still, number / 144, "uniform"))


def test_similarity_keeps_one_of_every_kind_and_the_first_of_equals():
    kinds = torch.eye(7, 8)[torch.arange(144) // 3 % 7]  # three times the same, seven kinds
    chosen = kept(kinds[None], 7 / 144, "similarity")[0]
    assert sorted(kinds[chosen].argmax(-1).tolist()) == list(range(7))
    assert all(cell < 21 for cell in chosen.tolist())
    assert kept(torch.ones(1, 144, 8), 5 / 144, "similarity").tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("number", [4, 9, 16, 36, 58, 72])
def test_uniform_spreads_over_rows_and_columns_and_a_smaller_budget_is_part_of_a_larger(number):
    config, layout = budget(number / 144, "uniform")
    chosen = spread_cells(layout, config)
    for quarter in ([c // 12 < 6 for c in chosen], [c % 12 < 6 for c in chosen]):
        assert abs(sum(quarter) - number / 2) <= 2
    larger, _ = budget((number + 7) / 144, "uniform")
    assert set(chosen) <= set(spread_cells(layout, larger))


def test_placeholders_are_thinned_where_the_evenly_spread_cells_lie():
    config, layout = budget(0.25, "uniform")
    row = "v" * 12
    lines = thinned("b".join([row] * 12) + "e", "v", layout, config).split("b")
    assert [len(line.strip("e")) for line in lines] == [
        sum(cell // 12 == line for cell in spread_cells(layout, config)) for line in range(12)
    ]
    whole = budget(1.0)[0]
    assert thinned(row, "v", layout, whole) == row


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, True, "0.5", None, float("nan")])
def test_a_share_outside_of_0_to_1_is_refused(keep):
    with pytest.raises(ValueError, match=r"keep=.*a number above 0, at most 1"):
        DynImgConfig(keep=keep)


def test_motion_without_prompts_is_refused_where_it_would_choose():
    assert DynImgConfig(fusion="none", keep_policy="motion").keeps_all
    assert DynImgConfig(fusion="none", keep=0.5).tokens_per_image == 72
    with pytest.raises(ValueError, match="fusion='none' has no prompts; take 'similarity' or 'uniform'"):
        DynImgConfig(fusion="none", keep=0.5, keep_policy="motion")


def logits_with(model, config: DynImgConfig, inputs) -> torch.Tensor:
    logits = apply_dynimg(model, config)(**inputs).logits
    remove_dynimg(model)
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_follows_its_budget(family):
    model, base = fresh(family)
    ordinary = ordinary_image(base)
    config = DynImgConfig(num_images=2, keep=0.4, keep_policy=POLICIES[len(family) % 2])
    whole = DynImgProcessor(base, DynImgConfig(num_images=2))(text=TEXTS[0], videos=noise_video(), return_tensors="pt")
    with torch.no_grad():
        before, state = model(**ordinary).logits, fingerprint(model)
        assert torch.equal(apply_dynimg(model, config)(**ordinary).logits, before)
        assert torch.equal(remove_dynimg(model)(**ordinary).logits, before)
        assert fingerprint(model) == state
        today = logits_with(model, DynImgConfig(num_images=2), whole)
        assert torch.equal(logits_with(model, replace(config, keep=1.0), whole), today)
        fewer = DynImgProcessor(base, config)(text=TEXTS[0], videos=noise_video(), return_tensors="pt")
        drawn = {**fewer, "dynimg_kept": torch.tensor([58])}  # a budget of one forward, as training draws it
        assert torch.equal(logits_with(model, replace(config, keep=1.0), drawn), logits_with(model, config, fewer))
    apply_dynimg(model, config)
    processor = DynImgProcessor(base, config)
    sharpen(model)
    randomise_theta(model)
    videos = [noise_video(0), noise_video(1), None]
    batch = processor(text=TEXTS, videos=videos, padding=True, padding_side="left", return_tensors="pt")
    assert (batch["input_ids"] == processor.image_token_id).sum(-1).tolist() == [116, 116, 0]
    with torch.no_grad():
        logits = model(**batch).logits
        for row, (text, video) in enumerate(zip(TEXTS, videos, strict=True)):
            single = processor(text=text, videos=[video], return_tensors="pt")
            attended = batch["attention_mask"][row].bool()
            torch.testing.assert_close(logits[row][attended], model(**single).logits[0], atol=5e-4, rtol=0)
    settings = {"max_new_tokens": 2, "output_logits": True, "return_dict_in_generate": True}
    settings |= {"do_sample": False, "suppress_tokens": [processor.image_token_id]}  # a random model may write one
    cached, full = (model.generate(**batch, **settings, use_cache=cache) for cache in (True, False))
    assert torch.equal(cached.sequences, full.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(full.logits), atol=1e-3, rtol=0)
    torch.testing.assert_close(cached.logits[0], logits[:, -1], atol=1e-3, rtol=0)

    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    model.train()(**batch, labels=labels).loss.backward()
    for name in AXES:
        gradient = getattr(rotary(model), name).grad
        assert gradient.isfinite().all()
        assert gradient.norm() > 0, name


@pytest.mark.parametrize("family", ["qwen2_vl", "glm4v"])
@torch.no_grad()
def test_m_rope_positions_are_the_familys_own_where_all_is_kept(family):
    model, processor = patched(family, DynImgConfig(num_images=2))
    batch = processor(text=TEXTS, videos=[noise_video(), noise_video(1), None], padding=True, return_tensors="pt")
    visual, attended = batch["input_ids"] == processor.image_token_id, batch["attention_mask"].bool()
    asked = {name: batch[name] for name in ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")}
    positions, deltas = model.model.get_rope_index(**asked)
    ours, ahead = starts(visual, attended, processor.config)
    assert torch.equal(placed(ours, visual, torch.arange(288).expand(2, -1), processor.config), positions)
    assert torch.equal(ahead, deltas)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen3_vl"])
@torch.no_grad()
def test_kept_tokens_are_those_of_the_whole_prompt_with_their_own_coordinates(family):
    """Slicing by hand what the same model without budget hands to its decoder gives the same logits."""
    whole, whole_processor = patched(family, DynImgConfig(num_images=2))
    config = DynImgConfig(num_images=2, keep=0.25)
    model, processor = patched(family, config)
    for one in (whole, model):
        sharpen(one)
        randomise_theta(one)
    long, short = (p(text=TEXTS[1], videos=noise_video(), return_tensors="pt") for p in (whole_processor, processor))
    index = model.model.get_image_features(short["pixel_values"]).kept[0]
    stays = torch.ones(long["input_ids"].shape[1], dtype=torch.bool)
    places = (long["input_ids"][0] == processor.image_token_id).nonzero()[:, 0]
    stays[places] = False
    stays[places[index]] = True
    seen = {}
    handle = whole.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs, coordinates=module.rotary_emb.coordinates), with_kwargs=True
    )
    whole(**long)
    handle.remove()
    decoder = whole.model.language_model
    decoder.rotary_emb.coordinates = seen["coordinates"][:, stays]
    positions = seen["position_ids"]  # of the whole prompt: with M-RoPE three of them, else the number of the token
    positions = torch.arange(len(stays))[None] if positions is None else positions
    positions = positions[..., stays]
    further = {}
    if "visual_pos_masks" in seen:
        further = {"visual_pos_masks": seen["visual_pos_masks"][:, stays]}
        further["deepstack_visual_embeds"] = [layer[index] for layer in seen["deepstack_visual_embeds"]]
    hidden = decoder(inputs_embeds=seen["inputs_embeds"][:, stays], position_ids=positions, **further).last_hidden_state
    decoder.rotary_emb.coordinates = None
    torch.testing.assert_close(model(**short).logits, whole.lm_head(hidden), atol=1e-4, rtol=0)


@torch.no_grad()
def test_beams_keep_rows_and_their_choice_together():
    model, processor = patched("qwen2_5_vl", DynImgConfig(num_images=2, keep=0.3))
    sharpen(model)
    randomise_theta(model)
    settings = {"max_new_tokens": 3, "num_beams": 3, "output_scores": True, "return_dict_in_generate": True}
    videos = [noise_video(0), noise_video(1)]
    batch = processor(text=TEXTS[:2], videos=videos, padding=True, return_tensors="pt")
    scores = model.generate(**batch, **settings).sequences_scores
    for score, text, video in zip(scores, TEXTS, videos, strict=False):
        single = processor(text=text, videos=video, return_tensors="pt")
        torch.testing.assert_close(model.generate(**single, **settings).sequences_scores[0], score, atol=1e-4, rtol=0)


@torch.no_grad()
def test_what_cannot_follow_a_budget_is_refused_with_the_reason():
    config = DynImgConfig(num_images=2, keep=0.4)
    model, processor = patched("llava_onevision", config)
    inputs = processor(text=TEXTS[0], videos=noise_video(), return_tensors="pt")
    with pytest.raises(ValueError, match="known of the whole prompt only: leave prefill_chunk_size out"):
        model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=40)
    with pytest.raises(ValueError, match="take keep_policy='uniform'"):
        processor(text=TEXTS[0], videos=noise_video(), return_coordinates=True)
    _, other = patched("llava_onevision", replace(config, keep=0.5))
    with pytest.raises(ValueError, match=r"hold \[144\] visual tokens, but with keep=0.4 the model keeps 116"):
        model(**other(text=TEXTS[0], videos=noise_video(), return_tensors="pt"))
    assert model(**inputs).logits.isfinite().all()
    for kept in ([58, 57], [0], [59]):
        with pytest.raises(ValueError, match=r"one number for all rows, from 1 to the 58 tokens .* \(keep=0.4\)"):
            model(**inputs, dynimg_kept=torch.tensor(kept))

    named = replace(find_patch("llava_onevision"), rope="half, M-RoPE")
    with pytest.raises(ValueError, match=r"has M-RoPE but no get_rope_index\(\)"):
        apply_dynimg(fresh("llava_onevision")[0], config, patch=named)

    even, processor = patched("llava_onevision", replace(config, keep_policy="uniform", t_mode="time"))
    inputs = processor(text=TEXTS[0], videos=noise_video(), return_tensors="pt", return_coordinates=True)
    randomise_theta(even)
    explicit = even(**inputs).logits
    del inputs["rope4d_coords"]
    assert torch.equal(even(**inputs).logits, explicit)


def test_a_budget_is_free_of_what_an_adapter_was_trained_with_and_is_saved(tmp_path):
    trained = DynImgConfig(num_images=2)
    config = replace(trained, keep=0.5, keep_policy="similarity")
    assert config.fits(trained)
    assert not replace(config, num_images=4).fits(trained)
    assert not replace(config, fusion="none").fits(replace(trained, keep=0.5))
    assert pairs(["keep=0.5", "num_images=2", "keep_policy=similarity"]) == {
        "keep": 0.5, "num_images": 2, "keep_policy": "similarity"
    }  # fmt: skip
    assert "144 per video, pooled region, 50% kept by similarity" in str(describe_dynimg(patched("llava", config)[0]))
    config.save_pretrained(tmp_path)
    assert DynImgConfig.from_pretrained(tmp_path) == config
