"""DynImgLayout: every patch and every pooled cell belongs to exactly one frame."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.layout import DynImgLayout, Rect, prompt_slots

PROMPTS = (1, 2, 3, 4, 6, 12)


@st.composite
def layouts(draw):
    """Any layout that a config allows, on towers of 12 to 40 patches."""
    pooled = draw(st.integers(2, 16))
    return DynImgLayout.from_config(
        DynImgConfig(
            pooled_size=pooled,
            num_prompts=draw(st.sampled_from([n for n in range(1, pooled + 1) if pooled % n == 0])),
            fusion=draw(st.sampled_from(["canvas", "tokens", "after", "none"])),
            pool=draw(st.sampled_from(["region", "plain"])),
            grid=draw(st.one_of(st.sampled_from([24, 27, 28]), st.integers(16, 40))),
        )
    )


def layout_of(grid=27, prompts=4, **options):
    return DynImgLayout.from_config(DynImgConfig(grid=grid, num_prompts=prompts, **options))


def cover(shape, rects):
    """How often each place is covered."""
    counts = np.zeros(shape, int)
    for index, rect in rects:
        assert rect.x >= 0
        assert rect.y >= 0
        assert rect.x + rect.w <= shape[-1]
        assert rect.y + rect.h <= shape[-2]
        counts[index, rect.rows, rect.columns] += 1
    return counts


@given(layouts())
def test_regions_tile_the_patches_of_every_canvas_exactly_once(layout):
    shape = (layout.num_canvases, layout.rows, layout.grid)
    assert (cover(shape, [(region.canvas, region.patches) for region in layout.regions]) == 1).all()


@given(layouts())
def test_regions_tile_the_pooled_cells_exactly_once(layout):
    shape = (1, layout.pooled, layout.pooled)
    assert (cover(shape, [(0, region.cells) for region in layout.regions]) == 1).all()


@given(layouts())
def test_pooling_never_needs_more_cells_than_patches(layout):
    for region in (*layout.regions, *layout.pooling_regions):
        assert 1 <= region.cells.h <= region.patches.h
        assert 1 <= region.cells.w <= region.patches.w


@pytest.mark.parametrize("fusion", ["canvas", "tokens", "after", "none"])
@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("grid", [24, 27, 28])
def test_a_dynimg_always_has_144_tokens(grid, prompts, fusion):
    layout = layout_of(grid, prompts, fusion=fusion)
    assert layout.num_tokens == sum(region.cells.h * region.cells.w for region in layout.regions) == 144


@pytest.mark.parametrize(
    ("grid", "prompts", "rows", "widths", "cell_rows"),
    [
        (27, 1, 14, [27], 6),
        (27, 2, 9, [14, 13], 4),
        (27, 3, 7, [9, 9, 9], 3),
        (27, 4, 7, [7, 7, 6, 7], 3),
        (27, 6, 5, [5, 4, 5, 4, 5, 4], 2),
        (27, 12, 2, [2, 3, 2, 2, 2, 3, 2, 2, 2, 3, 2, 2], 1),
        (24, 1, 12, [24], 6),
        (24, 2, 8, [12, 12], 4),
        (24, 3, 6, [8, 8, 8], 3),
        (24, 4, 6, [6, 6, 6, 6], 3),
        (24, 6, 4, [4] * 6, 2),
        (24, 12, 2, [2] * 12, 1),
        (28, 4, 7, [7, 7, 7, 7], 3),
    ],
)
def test_prompts_fill_a_row_of_known_widths_under_the_key_frame(grid, prompts, rows, widths, cell_rows):
    key, *row = layout_of(grid, prompts).regions
    assert key.patches == Rect(0, 0, grid - rows, grid)
    assert key.cells == Rect(0, 0, 12 - cell_rows, 12)
    assert [region.patches.w for region in row] == widths
    assert {region.patches.h for region in row} == {rows}
    assert {(region.cells.h, region.cells.w) for region in row} == {(cell_rows, 12 // prompts)}


@pytest.mark.parametrize(
    ("count", "slots"), [(1, [1]), (2, [-1, 1]), (3, [-1, 1, 2]), (4, [-2, -1, 1, 2]), (6, [-3, -2, -1, 1, 2, 3])]
)
def test_slots_run_in_time_order_around_the_key_frame(count, slots):
    assert prompt_slots(count) == slots


@given(layouts())
def test_the_key_frame_comes_first_and_prompts_follow_from_left_to_right(layout):
    assert layout.slots[0] == 0
    assert list(layout.slots[1:]) == sorted(layout.slots[1:])
    assert [region.cells.x for region in layout.regions[1:]] == sorted(r.cells.x for r in layout.regions[1:])


@pytest.mark.parametrize("prompts", PROMPTS)
def test_after_gives_every_frame_a_canvas_of_its_own_and_the_cells_of_canvas(prompts):
    after, canvas = layout_of(prompts=prompts, fusion="after"), layout_of(prompts=prompts)
    assert after.num_canvases == prompts + 1
    assert canvas.num_canvases == 1
    assert {region.patches for region in after.regions} == {Rect(0, 0, 27, 27)}
    assert [region.cells for region in after.regions] == [region.cells for region in canvas.regions]


@pytest.mark.parametrize("prompts", PROMPTS)
def test_tokens_leaves_the_key_frame_the_whole_grid_and_puts_the_row_below_it(prompts):
    tokens, canvas = layout_of(prompts=prompts, fusion="tokens"), layout_of(prompts=prompts)
    assert tokens.regions[0].patches == Rect(0, 0, 27, 27)
    assert (tokens.num_canvases, tokens.rows, canvas.rows) == (1, 27 + canvas.regions[1].patches.h, 27)
    for below, inside in zip(tokens.regions[1:], canvas.regions[1:], strict=True):
        assert below.patches == Rect(27, inside.patches.x, inside.patches.h, inside.patches.w)
    assert [region.cells for region in tokens.regions] == [region.cells for region in canvas.regions]


def test_none_gives_the_key_frame_everything():
    (region,) = layout_of(fusion="none").regions
    assert (region.patches, region.cells, region.slot) == (Rect(0, 0, 27, 27), Rect(0, 0, 12, 12), 0)


def test_plain_pooling_takes_a_shared_canvas_as_one():
    (region,) = layout_of(pool="plain").pooling_regions
    assert (region.patches, region.cells) == (Rect(0, 0, 27, 27), Rect(0, 0, 12, 12))


@pytest.mark.parametrize(
    "options", [{"pool": "region"}, {"pool": "plain", "fusion": "after"}, {"pool": "plain", "fusion": "tokens"}]
)
def test_frames_are_pooled_apart_by_region_or_where_they_share_no_grid(options):
    layout = layout_of(**options)
    assert layout.pooling_regions == layout.regions


def test_a_grid_of_27_is_assumed_until_a_tower_is_known():
    assert DynImgLayout.from_config(DynImgConfig()).grid == 27


def test_a_tower_with_fewer_patches_than_cells_is_refused():
    with pytest.raises(ValueError, match="8 x 8 patches, too few to pool to 12 x 12 cells; choose pooled_size <= 8"):
        layout_of(grid=8)


def test_a_pooled_grid_without_room_for_key_and_prompts_is_refused():
    with pytest.raises(ValueError, match="pooled_size=1"):
        DynImgLayout.from_config(DynImgConfig(pooled_size=1, num_prompts=1))


def test_a_rectangle_scales_from_patches_to_pixels():
    assert Rect(20, 7, 7, 6).scaled(14) == Rect(280, 98, 98, 84)
