"""Which frames are shown: pure integers, no video is opened here."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynimg_plugin.layout import prompt_slots
from dynimg_plugin.video.sampling import Pick, VideoIndex, sample

POLICIES = ("auto", "iframe", "uniform")


def index_of(frames, iframes=(), *, ticks=1, first=0):
    """An index of `frames` frames, `ticks` each; `iframes` are numbers of frames."""
    last = first + (frames - 1) * ticks
    return VideoIndex(tuple(first + i * ticks for i in iframes), first, last, ticks, 0.04, "test")


def times_of(groups):
    return [[pick.time for pick in group] for group in groups]


def shown(groups):
    return [pick.time for group in groups for pick in group]


@st.composite
def requests(draw, policies=POLICIES):
    """Any clip, any number of DynImgs and prompts, with or without a seed."""
    frames = draw(st.integers(1, 400))
    policy = draw(st.sampled_from(policies))
    iframes = draw(st.sets(st.integers(0, frames - 1), min_size=int(policy == "iframe"), max_size=60))
    index = index_of(frames, sorted(iframes), ticks=draw(st.sampled_from([1, 62, 1024])), first=draw(st.integers(0, 9)))
    counts = {"num_images": draw(st.integers(1, 8)), "num_prompts": draw(st.integers(0, 12))}
    return index, {**counts, "policy": policy, "seed": draw(st.none() | st.integers(0, 2**32))}


@given(requests())
def test_every_dynimg_has_its_key_frame_and_one_pick_per_slot(request_):
    index, options = request_
    groups = sample(index, **options)
    prompts = options["num_prompts"]
    slots = [0, *prompt_slots(prompts)] if prompts else [0]
    assert [[pick.slot for pick in group] for group in groups] == [slots] * options["num_images"]


@given(requests())
def test_every_time_is_a_whole_tick_while_the_clip_runs(request_):
    index, options = request_
    for time in shown(sample(index, **options)):
        assert isinstance(time, int)
        assert index.first <= time < index.last + index.frame_ticks


@given(requests())
def test_prompts_are_in_time_order_around_their_key_frame(request_):
    index, options = request_
    for key, *prompts in sample(index, **options):
        times = [pick.time for pick in prompts]
        assert times == sorted(times)
        assert all(pick.time <= key.time if pick.slot < 0 else pick.time >= key.time for pick in prompts)


@given(requests())
def test_dynimgs_follow_each_other_in_time(request_):
    index, options = request_
    for earlier, later in pairwise(times_of(sample(index, **options))):
        assert earlier[0] <= later[0]
        assert max(earlier) <= min(later)


@given(requests())
def test_the_same_request_gives_the_same_frames(request_):
    index, options = request_
    assert sample(index, **options) == sample(index, **options)


@given(requests(policies=["iframe"]))
def test_the_iframe_policy_shows_nothing_but_iframes(request_):
    index, options = request_
    assert set(shown(sample(index, **options))) <= set(index.iframes)


@given(requests(policies=["uniform"]))
def test_the_uniform_policy_does_not_look_at_iframes(request_):
    index, options = request_
    without = VideoIndex((), index.first, index.last, index.frame_ticks, index.tick_seconds, index.kind)
    assert sample(index, **options) == sample(without, **options)


@given(requests())
def test_a_seed_moves_prompts_but_never_key_frames(request_):
    index, options = request_
    still = sample(index, **{**options, "seed": None})
    assert [group[0] for group in sample(index, **options)] == [group[0] for group in still]


@pytest.mark.parametrize("every", [None, 1000, 30], ids=["no_iframes", "first_frame", "every_30"])
@pytest.mark.parametrize("prompts", [2, 4, 6])
@pytest.mark.parametrize("ticks", [1, 62])
def test_no_frame_is_shown_twice_while_there_are_others(ticks, prompts, every):
    for frames in range(1, 120):
        index = index_of(frames, range(0, frames, every) if every else (), ticks=ticks, first=5)
        times = shown(sample(index, num_images=4, num_prompts=prompts))
        assert len({(time - 5) // ticks for time in times}) == min(frames, 4 * (1 + prompts)), f"{frames} frames"


@pytest.mark.parametrize("iframes", [(), (0,)], ids=["no_iframes", "first_frame"])
@pytest.mark.parametrize("prompts", [1, 2, 4, 12])
@pytest.mark.parametrize("policy", ["auto", "uniform"])
def test_dynimgs_of_short_clips_do_not_reach_into_each_other(policy, prompts, iframes):
    for frames in range(1, 60):
        groups = sample(index_of(frames, iframes), num_images=4, num_prompts=prompts, policy=policy)
        for earlier, later in pairwise(times_of(groups)):
            assert max(earlier) <= min(later), f"{frames} frames"


@pytest.mark.parametrize("policy", ["auto", "uniform"])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_twenty_frames_are_shown_once_each_in_order(policy, seed):
    groups = sample(index_of(20), num_images=4, num_prompts=4, policy=policy, seed=seed)
    assert times_of(groups) == [[2, 0, 1, 3, 4], [7, 5, 6, 8, 9], [12, 10, 11, 13, 14], [17, 15, 16, 18, 19]]


def test_slots_name_the_order_of_the_prompts():
    ((key, *prompts),) = sample(index_of(5), num_images=1, num_prompts=4)
    assert key == Pick(2, 0)
    assert prompts == [Pick(0, -2), Pick(1, -1), Pick(3, 1), Pick(4, 2)]


def test_an_odd_number_of_prompts_puts_one_more_after_the_key_frame():
    ((key, *prompts),) = sample(index_of(40), num_images=1, num_prompts=3)
    assert [pick.time < key.time for pick in prompts] == [True, False, False]


def test_without_prompts_the_middles_of_equal_segments_are_shown():
    assert times_of(sample(index_of(40), num_images=4, num_prompts=0)) == [[5], [15], [25], [35]]


@pytest.mark.parametrize("count", [8, 9, 15, 16, 40])
def test_with_two_iframes_per_dynimg_key_frames_are_iframes_but_not_the_first(count):
    index = index_of(count * 5, range(0, count * 5, 5))
    keys = [group[0].time for group in sample(index, num_images=4, num_prompts=4)]
    assert len(set(keys)) == 4
    assert set(keys) <= set(index.iframes[1:])


@pytest.mark.parametrize("seed", [None, 3])
def test_with_many_iframes_every_frame_is_another_iframe(seed):
    index = index_of(400, range(0, 400, 10))
    times = shown(sample(index, num_images=4, num_prompts=4, seed=seed))
    assert len(set(times)) == 20
    assert set(times) <= set(index.iframes)


def test_with_few_iframes_near_ones_are_key_frames_and_the_rest_is_in_between():
    groups = sample(index_of(100, [0, 40]), num_images=4, num_prompts=2)
    assert [group[0].time for group in groups] == [12, 40, 62, 87]


def test_an_iframe_beside_the_key_frame_is_preferred_as_a_prompt():
    ((_, earlier, later),) = sample(index_of(100, [3]), num_images=1, num_prompts=2)
    assert earlier.time == 3
    assert later.time == 75


@pytest.mark.parametrize("policy", ["auto", "uniform"])
def test_a_single_frame_is_repeated(policy):
    groups = sample(index_of(1, [0]), num_images=4, num_prompts=4, policy=policy)
    assert times_of(groups) == [[0] * 5] * 4


def test_the_iframe_policy_repeats_iframes_when_there_are_too_few():
    times = shown(sample(index_of(100, [0, 50]), num_images=4, num_prompts=4, policy="iframe"))
    assert len(times) == 20
    assert set(times) == {0, 50}


def test_the_iframe_policy_without_iframes_is_refused_with_the_others():
    with pytest.raises(ValueError, match=r"needs I-frames.*'auto' or 'uniform'"):
        sample(index_of(100), num_images=4, num_prompts=4, policy="iframe")


@pytest.mark.parametrize("iframes", [(), range(0, 1000, 5)], ids=["none", "many"])
def test_seeds_draw_other_frames_than_the_fixed_choice_and_than_each_other(iframes):
    index = index_of(1000, iframes)
    drawn = [times_of(sample(index, num_images=4, num_prompts=4, seed=seed)) for seed in (None, 0, 1, 2)]
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[:i])
