"""Kept tokens keep their positions in the sequence: gaps in position ids, also while a model writes on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from modelling import noise_video, patched, randomise_theta, sharpen
from transformers import DynamicCache

from dynimg_plugin import DynImgConfig
from dynimg_plugin.places import AHEAD, ahead_of, gaps, with_places

CONFIG = DynImgConfig(num_images=2, keep=3 / 16, pooled_size=4, keep_policy="uniform")  # 3 of 16 tokens


def row(picture: str) -> torch.Tensor:
    """ "ab[..]" -> where the dots are."""
    return torch.tensor([[character == "." for character in picture]])


def test_text_after_a_dynimg_stands_where_it_stood_and_kept_tokens_between():
    kept = torch.tensor([[0, 5, 15, 16 + 2, 16 + 3, 16 + 9]])
    visual = row("ab...c...de")
    shift, ahead = gaps(visual, kept, CONFIG)
    positions = torch.arange(11) + shift
    assert positions.tolist() == [[0, 1, 2, 7, 17, 18, 19 + 2, 19 + 3, 19 + 9, 35, 36]]
    assert ahead.tolist() == [[26]]


def test_what_stands_between_the_rows_of_a_dynimg_comes_after_the_token_before_it():
    shift, _ = gaps(row("a.n..nb"), torch.tensor([[1, 6, 14]]), CONFIG)
    assert (torch.arange(7) + shift).tolist() == [[0, 2, 3, 8, 16, 18, 19]]


def test_rows_without_dynimgs_have_no_gaps():
    visual = torch.cat((row("__a...b"), row("abcdefg")))
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, :2] = 0
    given, ahead = with_places({"attention_mask": mask}, visual, torch.tensor([[0, 5, 15]]), CONFIG)
    assert given["position_ids"][0, 2:].tolist() == [2, 3, 8, 18, 19]
    assert given["position_ids"][1].tolist() == list(range(7))
    assert ahead.shift.tolist() == [[13], [0]]
    assert (ahead.first, ahead.end) == (3, 6)


def test_positions_that_are_given_are_moved_and_a_mask_is_made_where_there_is_none():
    visual, kept = row("a...b"), torch.tensor([[0, 5, 15]])
    given, _ = with_places({"position_ids": torch.arange(5)[None] + 100}, visual, kept, CONFIG)
    assert given["position_ids"].tolist() == [[100, 101, 106, 116, 117]]
    assert given["attention_mask"].tolist() == [[1] * 5]
    cache = SimpleNamespace(get_seq_length=lambda: 7)
    with pytest.raises(ValueError, match="came after 7 tokens that are in the cache; give the whole prompt at once"):
        with_places({"past_key_values": cache}, visual, kept, CONFIG)


@pytest.mark.parametrize(("named", "plain"), [(True, False), (False, False), (False, True)])
@torch.no_grad()
def test_a_loop_of_ones_own_goes_on_where_the_prompt_ends(named, plain):
    """Token by token with a cache gives the logits of the whole, with and without position ids from outside."""
    model, processor = patched("llava_onevision", DynImgConfig(num_images=2, keep=0.3))
    sharpen(model)
    randomise_theta(model)
    inputs = processor(text="What moves?", videos=noise_video(), return_tensors="pt")
    written = torch.tensor([[5, 9, 7]])
    ids = torch.cat((inputs["input_ids"], written), 1)
    whole = model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[:, -3:]
    cache = DynamicCache(config=model.config.text_config)
    length = inputs["input_ids"].shape[1]
    model(**inputs, past_key_values=cache, use_cache=True, return_dict=not plain)
    assert getattr(cache, AHEAD).shift.tolist() == [[2 * (144 - 43)]]
    for place in range(3):
        position = {"position_ids": torch.tensor([[length + place]])} if named else {}
        logits = model(
            input_ids=written[:, place : place + 1], past_key_values=cache, use_cache=True, **position
        ).logits
        torch.testing.assert_close(logits[:, 0], whole[:, place], atol=1e-3, rtol=0)


@torch.no_grad()
def test_an_emptied_cache_forgets_and_a_forward_budget_is_remembered_without_4d_rope():
    model, processor = patched("llava_onevision", DynImgConfig(num_images=2, rope_4d=False))
    sharpen(model)
    inputs = processor.with_keep(0.3)(text="What moves?", videos=noise_video(), return_tensors="pt")
    kept = {"dynimg_kept": torch.tensor([43])}
    ids = torch.cat((inputs["input_ids"], torch.tensor([[5]])), 1)
    whole = model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}, **kept).logits[:, -1]
    cache = DynamicCache(config=model.config.text_config)
    model(**inputs, **kept, past_key_values=cache, use_cache=True)
    assert ahead_of(cache) is not None
    torch.testing.assert_close(
        model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1], whole, atol=1e-3, rtol=0
    )
    cache.crop(-cache.get_seq_length())  # reset() keeps the length in transformers 4
    assert ahead_of(cache) is None
    assert not hasattr(cache, AHEAD)


@pytest.mark.oldest
@torch.no_grad()
def test_a_cache_that_was_cut_goes_on_at_the_right_positions_or_not_at_all():
    """Cut in the text after the DynImgs, inside them, before them; as when a prompt's cache is used again."""
    model, processor = patched("llava_onevision", DynImgConfig(num_images=2, keep=0.3))
    sharpen(model)
    inputs = processor(text="What moves?", videos=noise_video(), return_tensors="pt")
    cache = DynamicCache(config=model.config.text_config)
    whole = model(**inputs, past_key_values=cache, use_cache=True).logits
    ids = inputs["input_ids"]
    first, *_, last = (ids[0] == model.config.image_token_id).nonzero().flatten().tolist()
    cache.crop(last + 1 - cache.get_seq_length())
    logits = model(input_ids=ids[:, last + 1 :], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(logits, whole[:, last + 1 :], atol=1e-5, rtol=0)
    cache.crop(last - cache.get_seq_length())
    with pytest.raises(ValueError, match=f"cut to {last} tokens, inside the DynImgs .*{first} to {last + 1}"):
        model(input_ids=ids[:, last:], past_key_values=cache, use_cache=True)
    cache.crop(first - last)
    fresh = DynamicCache(config=model.config.text_config)
    model(input_ids=ids[:, :first], past_key_values=fresh, use_cache=True)
    text = torch.tensor([[5, 9]])
    after = [model(input_ids=text, past_key_values=part, use_cache=True).logits for part in (cache, fresh)]
    torch.testing.assert_close(*after, atol=1e-5, rtol=0)


def test_a_forward_that_fails_leaves_nothing_behind():
    model, processor = patched("llava_onevision", DynImgConfig(num_images=2, keep=0.3))
    inputs = processor(text="What moves?", videos=noise_video(), return_tensors="pt")
    handle = model.model.language_model.layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**inputs)
    handle.remove()
    session = model.model.dynimg
    assert (session.turn.taken, session.encoded, session.ahead) == (0, None, None)
    with ThreadPoolExecutor(1) as pool, torch.no_grad():
        assert pool.submit(model, **inputs).result(timeout=60).logits.isfinite().all()
