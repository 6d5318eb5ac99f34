"""(t, h, w): the same place has the same (h, w) in all frames, and placeholders carry them wherever they stand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.coordinates import CoordinateTable, frame_times, token_coordinates
from dynimg_plugin.layout import DynImgLayout

IMAGE, TEXT, PAD = 7, 1, 0
GRIDS = (24, 27, 28)
PROMPTS = (1, 2, 3, 4, 6, 12)


def table_of(grid=27, prompts=4, **options):
    layout = DynImgLayout.from_config(DynImgConfig(grid=grid, num_prompts=prompts, **options))
    return layout, CoordinateTable.from_layout(layout)


def maps_of(layout, table):
    """(h, w) of every frame's own cells, one (rows, columns, 2) map per frame."""
    hw = table.hw.view(layout.pooled, layout.pooled, 2)
    return [hw[region.cells.rows, region.cells.columns] for region in layout.regions]


@pytest.fixture(scope="module")
def table():
    """Four tokens per DynImg: two cells of the key frame above two prompts of one cell each."""
    layout = DynImgLayout.from_config(DynImgConfig(pooled_size=2, num_prompts=2, grid=8))
    return CoordinateTable.from_layout(layout)


def row(*tokens):
    return torch.tensor([tokens])


every_layout = pytest.mark.parametrize(
    ("grid", "prompts", "fusion"), [(g, n, f) for g in GRIDS for n in PROMPTS for f in ("canvas", "tokens", "after")]
)


@every_layout
def test_every_frame_is_centred_on_the_key_frames_centre(grid, prompts, fusion):
    layout, table = table_of(grid, prompts, fusion=fusion)
    key = layout.regions[0].cells
    centre = torch.tensor([(key.h - 1) / 2, (key.w - 1) / 2])
    for hw in maps_of(layout, table):
        torch.testing.assert_close(hw.flatten(0, 1).mean(0), centre)


@every_layout
def test_every_frames_map_is_symmetric(grid, prompts, fusion):
    layout, table = table_of(grid, prompts, fusion=fusion)
    for hw in maps_of(layout, table):
        torch.testing.assert_close(hw + hw.flip(0, 1), 2 * hw.mean((0, 1)).expand_as(hw))


@every_layout
def test_h_rises_down_the_rows_and_w_along_the_columns(grid, prompts, fusion):
    layout, table = table_of(grid, prompts, fusion=fusion)
    for hw in maps_of(layout, table):
        assert (hw[1:, :, 0] > hw[:-1, :, 0]).all()
        assert (hw[:, 1:, 1] > hw[:, :-1, 1]).all()
        assert (hw[:, :, 0] == hw[:, :1, 0]).all()
        assert (hw[:, :, 1] == hw[:1, :, 1]).all()


@every_layout
def test_no_frame_reaches_beyond_the_edges_of_the_key_frame(grid, prompts, fusion):
    layout, table = table_of(grid, prompts, fusion=fusion)
    key = layout.regions[0].cells
    for hw in maps_of(layout, table):
        assert (hw > -0.5).all()
        assert (hw < torch.tensor([key.h, key.w]) - 0.5).all()


@every_layout
def test_t_of_a_cell_is_the_slot_of_its_frame(grid, prompts, fusion):
    layout, table = table_of(grid, prompts, fusion=fusion)
    t = (table.share @ table.slots).view(layout.pooled, layout.pooled)
    for region in layout.regions:
        assert (t[region.cells.rows, region.cells.columns] == region.slot).all()


@every_layout
def test_a_cell_belongs_to_one_frame_alone(grid, prompts, fusion):
    _, table = table_of(grid, prompts, fusion=fusion)
    assert ((table.share == 0) | (table.share == 1)).all()
    assert (table.share.sum(-1) == 1).all()


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("grid", GRIDS)
def test_with_plain_pooling_the_shares_of_a_cell_still_add_up_to_one(grid, prompts):
    _, table = table_of(grid, prompts, pool="plain")
    torch.testing.assert_close(table.share.sum(-1), torch.ones(144))


def test_on_a_grid_of_24_key_cells_have_whole_coordinates_and_prompts_the_middles_of_threes():
    layout, table = table_of(24)
    key, *others = maps_of(layout, table)
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(12.0), indexing="ij")
    torch.testing.assert_close(key, torch.stack((rows, columns), -1), atol=1e-5, rtol=0)
    for hw in others:
        torch.testing.assert_close(hw[:, 0, 0], torch.tensor([1.0, 4.0, 7.0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(hw[0, :, 1], torch.tensor([1.5, 5.5, 9.5]), atol=1e-5, rtol=0)


def test_without_prompts_the_coordinates_count_the_cells():
    _, table = table_of(24, fusion="none")
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    torch.testing.assert_close(table.hw, torch.stack((rows, columns), -1).flatten(0, 1), atol=1e-5, rtol=0)
    assert (table.share @ table.slots == 0).all()


def test_text_has_zeros_and_placeholders_the_tables_rows_in_order(table):
    coordinates = token_coordinates(row(TEXT, TEXT, IMAGE, IMAGE, IMAGE, IMAGE, TEXT), IMAGE, table)
    assert coordinates.shape == (1, 7, 3)
    assert coordinates.dtype == torch.float32
    assert (coordinates[0, [0, 1, 6]] == 0).all()
    assert torch.equal(coordinates[0, 2:6, 1:], table.hw)
    assert coordinates[0, 2:6, 0].tolist() == [0, 0, -1, 1]


def test_two_dynimgs_in_a_row_have_the_same_coordinates(table):
    first, second = token_coordinates(row(*[IMAGE] * 8), IMAGE, table)[0].split(4)
    assert torch.equal(first, second)


@given(st.lists(st.sampled_from([IMAGE, TEXT]), min_size=1, max_size=24), st.integers(0, 9), st.integers(0, 9))
def test_padding_on_either_side_and_text_in_between_change_nothing(tokens, left, right):
    layout = DynImgLayout.from_config(DynImgConfig(pooled_size=2, num_prompts=2, grid=8))
    table = CoordinateTable.from_layout(layout)
    padded = token_coordinates(row(*[PAD] * left, *tokens, *[PAD] * right), IMAGE, table)[0]
    assert torch.equal(padded[left : left + len(tokens)], token_coordinates(row(*tokens), IMAGE, table)[0])
    assert (padded[:left] == 0).all()
    assert (padded[left + len(tokens) :] == 0).all()
    images = token_coordinates(row(*[IMAGE] * tokens.count(IMAGE)), IMAGE, table)[0]
    assert torch.equal(padded[left:][[token == IMAGE for token in tokens] + [False] * right], images)


def test_real_times_reach_the_rows_images_and_frames_that_they_belong_to(table):
    ids = torch.tensor([[TEXT, *[IMAGE] * 8], [TEXT] * 9, [*[IMAGE] * 8, PAD]])
    times = torch.tensor([[[1.0, 2, 3], [4, 5, 6]], [[10, 20, 30], [40, 50, 60]]])
    t = token_coordinates(ids, IMAGE, table, times)[..., 0]
    assert t.tolist() == [
        [0, 1, 1, 2, 3, 4, 4, 5, 6],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [10, 10, 20, 30, 40, 40, 50, 60, 0],
    ]


def test_a_first_row_without_dynimgs_takes_no_times_from_the_next(table):
    ids = torch.tensor([[TEXT] * 4, [IMAGE] * 4])
    t = token_coordinates(ids, IMAGE, table, torch.tensor([[[5.0, 6, 7]]]))[..., 0]
    assert t.tolist() == [[0, 0, 0, 0], [5, 5, 6, 7]]


def test_real_times_change_t_alone(table):
    ids = row(TEXT, *[IMAGE] * 4)
    with_times = token_coordinates(ids, IMAGE, table, torch.tensor([[[5.0, 6, 7]]]))
    assert torch.equal(with_times[..., 1:], token_coordinates(ids, IMAGE, table)[..., 1:])


def test_with_plain_pooling_t_is_the_mean_over_the_frames_of_a_cell():
    _, table = table_of(27, 4, pool="plain")
    t = token_coordinates(torch.full((1, 144), IMAGE), IMAGE, table, torch.tensor([[[8.0, 8, 8, 8, 8]]]))[..., 0]
    torch.testing.assert_close(t, torch.full((1, 144), 8.0))


@pytest.mark.parametrize(
    ("seconds", "times"),
    [
        ([[0, 5, 10, 15]], [[0, 1, 2, 3]]),
        ([[5, 0, 15, 10]], [[1, 0, 3, 2]]),
        ([[100, 102], [104, 106]], [[0, 1], [2, 3]]),
        ([[0, 1, 2, 9]], [[0, 1 / 3, 2 / 3, 3]]),
        ([[4.5, 4.5], [4.5, 4.5]], [[0, 0], [0, 0]]),
        ([[3]], [[0]]),
    ],
)
def test_real_times_count_mean_distances_from_the_first_frame(seconds, times):
    torch.testing.assert_close(frame_times(seconds), torch.tensor(times, dtype=torch.float32))
