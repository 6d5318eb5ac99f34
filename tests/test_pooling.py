"""pool_tokens: which patches reach which pooled cells."""

import pytest
import torch
import torch.nn.functional as F

from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.layout import DynImgLayout
from dynimg_plugin.pooling import pool_tokens

PROMPTS = (1, 2, 3, 4, 6, 12)
GRIDS = (24, 27, 28)


def layout_of(grid=27, prompts=4, **options):
    return DynImgLayout.from_config(DynImgConfig(grid=grid, num_prompts=prompts, **options))


def random_patches(layout, count=2, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, layout.num_canvases, layout.rows * layout.grid, channels, generator=generator)


def cells_that_change(layout, region):
    """(pooled, pooled) truth values: the cells whose bits change when all patches of one frame do."""
    before = random_patches(layout)
    after = before.clone().unflatten(2, (layout.rows, layout.grid))
    after[:, region.canvas, region.patches.rows, region.patches.columns] += 1
    changed = pool_tokens(before, layout) != pool_tokens(after.flatten(2, 3), layout)
    return changed.any(0).any(-1).unflatten(0, (layout.pooled, layout.pooled))


@pytest.mark.parametrize("fusion", ["canvas", "tokens", "after"])
@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_frame_changes_its_own_cells_and_no_bit_of_any_other(grid, prompts, fusion):
    layout = layout_of(grid, prompts, fusion=fusion)
    for region in layout.regions:
        own = torch.zeros(12, 12, dtype=torch.bool)
        own[region.cells.rows, region.cells.columns] = True
        assert torch.equal(cells_that_change(layout, region), own)


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("grid", GRIDS)
def test_plain_pooling_is_adaptive_average_pooling_of_the_whole_grid(grid, prompts):
    layout = layout_of(grid, prompts, pool="plain")
    patches = random_patches(layout)
    whole = patches[:, 0].transpose(1, 2).unflatten(2, (grid, grid))
    expected = F.adaptive_avg_pool2d(whole, 12).flatten(2).transpose(1, 2)
    assert torch.equal(pool_tokens(patches, layout), expected)


@pytest.mark.parametrize(
    ("grid", "mixed"),
    [
        (24, {1: 0, 2: 0, 3: 0, 4: 0, 6: 0, 12: 0}),
        (27, {1: 12, 2: 4, 3: 12, 4: 21, 6: 18, 12: 12}),
        (28, {1: 0, 2: 12, 3: 6, 4: 0, 6: 20, 12: 12}),
    ],
)
def test_plain_pooling_mixes_frames_in_a_known_number_of_cells(grid, mixed):
    found = {}
    for prompts in PROMPTS:
        layout = layout_of(grid, prompts, pool="plain")
        frames_per_cell = sum(cells_that_change(layout, region).int() for region in layout.regions)
        found[prompts] = int((frames_per_cell > 1).sum())
    assert found == mixed


@pytest.mark.parametrize(
    "options", [{}, {"pool": "plain"}, {"fusion": "after"}, {"fusion": "none"}, {"fusion": "tokens"}], ids=str
)
def test_a_constant_stays_the_same_constant(options):
    layout = layout_of(**options)
    pooled = pool_tokens(torch.full((1, layout.num_canvases, layout.rows * 27, 2), 0.5), layout)
    assert pooled.shape == (1, 144, 2)
    assert (pooled == 0.5).all()


def test_tokens_come_row_by_row_and_average_the_patches_above_them():
    layout = layout_of(grid=24, fusion="none")
    patches = torch.arange(24 * 24, dtype=torch.float32).view(1, 1, -1, 1)
    pooled = pool_tokens(patches, layout)[0, :, 0].view(12, 12)
    assert pooled[0, 0] == (0 + 1 + 24 + 25) / 4
    assert pooled[0, 1] == pooled[0, 0] + 2
    assert pooled[1, 0] == pooled[0, 0] + 48


def test_images_of_a_batch_do_not_mix():
    layout = layout_of()
    patches = random_patches(layout)
    assert torch.equal(pool_tokens(patches, layout)[1:], pool_tokens(patches[1:], layout))


def test_the_dtype_is_kept_and_gradients_reach_every_patch():
    layout = layout_of()
    patches = random_patches(layout).bfloat16().requires_grad_()
    pooled = pool_tokens(patches, layout)
    pooled.sum().backward()
    assert pooled.dtype == torch.bfloat16
    assert (patches.grad > 0).all()


@pytest.mark.parametrize("shape", [(1, 1, 576, 3), (1, 5, 729, 3), (1, 729, 3), (729, 3)])
def test_patches_that_do_not_fit_are_refused_with_both_shapes(shape):
    with pytest.raises(ValueError, match=r"expected \(n, 1, 729, c\)") as error:
        pool_tokens(torch.zeros(shape), layout_of())
    assert str(shape) in str(error.value)
