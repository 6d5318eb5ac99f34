"""Training data: rows of every format, the path guard, broken videos, labels on answers alone."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from modelling import patched
from PIL import Image
from torch.utils.data import DataLoader
from trainings import quick, talk, write_rows

from dynimg_plugin import DynImgConfig, DynImgProcessor
from dynimg_plugin.tiny import build_tiny, write_tiny
from dynimg_plugin.training import DynImgCollator, DynImgDataset, TooManyBroken
from dynimg_plugin.training.chat import training_text
from dynimg_plugin.training.collator import IGNORED
from dynimg_plugin.training.dataset import read_quarantine
from dynimg_plugin.training.rows import read_rows


@pytest.fixture(scope="module")
def processor():
    return patched("llava_onevision", DynImgConfig(num_images=1))[1]


@pytest.fixture
def root(tmp_path, clip):
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(clip, folder / "a.mp4")
    Image.new("RGB", (40, 30), (200, 10, 10)).save(folder / "a.png")
    return folder


def labelled(processor, batch, row=0):
    labels = batch["labels"][row]
    return processor.tokenizer.decode(labels[labels != IGNORED])


def test_llava_json_and_messages_jsonl_give_the_same_tensors(root, processor, tmp_path):
    llava = write_rows(tmp_path / "llava.json", [talk("<image>\nWhat moves?", "a square", id="x", video="a.mp4")])
    question = {
        "role": "user",
        "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What moves?"}],
    }
    strings = [{"role": "user", "content": "<video>What moves?"}, {"role": "assistant", "content": "a square"}]
    records = [
        {"id": "x", "messages": [question, {"role": "assistant", "content": "a square"}]},
        {"id": "x", "messages": strings, "videos": ["a.mp4"]},
    ]
    lines = tmp_path / "messages.jsonl"
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    collate = DynImgCollator(processor)
    one, two, three = [collate([s]) for source in (llava, lines) for s in DynImgDataset(source, processor, root=root)]
    for other in (two, three):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert labelled(processor, one) == "a square<|im_end|>"


def test_labels_stand_on_every_answer_of_a_conversation_and_nowhere_else(root, processor, tmp_path):
    turns = ["What moves?", "a square", "Where to?", "right"]
    conversation = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]
    rows = [{"video": "a.mp4", "conversations": conversation}, talk("2 and 2?", "four")]
    samples = list(DynImgDataset(write_rows(tmp_path / "rows.json", rows), processor, root=root))
    batch = DynImgCollator(processor)(samples)
    assert labelled(processor, batch, 0) == "a square<|im_end|>right<|im_end|>"
    assert labelled(processor, batch, 1) == "four<|im_end|>"
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    assert batch["pixel_values"].shape[:2] == (1, 1)
    answered = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][answered], batch["input_ids"][answered])


def test_the_prompt_before_the_answer_is_the_one_of_generation(root, processor, tmp_path):
    rows = write_rows(tmp_path / "rows.json", [talk("What moves?", "a square", video="a.mp4")])
    sample = DynImgDataset(rows, processor, root=root)[0]
    batch = DynImgCollator(processor)([sample])
    prompt = processor(text="What moves?", images=[sample["videos"]], return_tensors="pt")
    start = int((batch["labels"][0] != IGNORED).nonzero()[0])
    assert torch.equal(batch["input_ids"][0, :start], prompt["input_ids"][0])
    assert torch.equal(batch["pixel_values"], prompt["pixel_values"])


ONEVISION = (  # writes a space after the role that the generation prompt does not
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% else %}{{ '\\n' + c['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VICUNA = (  # no end token, an answer after a space
    "{% for m in messages %}{{ m['role'].upper() }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    "{% else %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (
            ONEVISION,
            "<|im_start|>user <image>\nQ<|im_end|><|im_start|>assistant\n[A<|im_end|>]<|im_start|>user \nR<|im_end|>"
            "<|im_start|>assistant\n[B<|im_end|>]",
        ),
        (VICUNA, "USER: <image>\nQ ASSISTANT: [A<|im_end|>]USER: R ASSISTANT: [B<|im_end|>]"),
    ],
)
def test_templates_of_real_checkpoints(template, wanted):
    _, processor = patched("llava")
    processor.chat_template = template
    text = [{"type": "text", "text": word} for word in "QARB"]
    contents = [[{"type": "video"}, text[0]], [text[1]], [text[2]], [text[3]]]
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    written, spans = training_text(processor, messages)
    for start, end in reversed(spans):
        written = f"{written[:start]}[{written[start:end]}]{written[end:]}"
    assert written == wanted


def test_a_longer_conversation_is_cut_at_its_end(root, processor, tmp_path):
    rows = write_rows(tmp_path / "rows.json", [talk("What moves?", "a b c d e f g h", video="a.mp4")])
    samples = list(DynImgDataset(rows, processor, root=root))
    whole = DynImgCollator(processor)(samples)["labels"]
    cut = DynImgCollator(processor, max_length=whole.shape[1] - 6)(samples)["labels"]
    assert torch.equal(cut, whole[:, :-6])


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision"])
def test_pictures_and_text_go_in_as_without_dynimg(root, tmp_path, family):
    """Loss and gradient of an image-only and of a text-only batch are those of the unpatched model."""
    model, processor = patched(family)
    plain, base = build_tiny(family)
    for row in (talk("<image>\nWhat is it?", "red", image="a.png"), talk("2 and 2?", "four")):
        sample = DynImgDataset(write_rows(tmp_path / "rows.json", [row]), processor, root=root)[0]
        batch = DynImgCollator(processor)([sample])
        ours, theirs = model(**batch).loss, plain(**batch).loss
        assert torch.equal(ours, theirs)
        assert sample["videos"] == []
        assert base.tokenizer.decode(batch["labels"][batch["labels"] != IGNORED]).startswith(("red", "four"))


def test_videos_and_pictures_in_one_batch_are_refused(root, processor, tmp_path):
    rows = [talk("a", video="a.mp4"), talk("b", image="a.png")]
    samples = list(DynImgDataset(write_rows(tmp_path / "rows.json", rows), processor, root=root))
    with pytest.raises(ValueError, match="per_device_train_batch_size=1"):
        DynImgCollator(processor)(samples)


@pytest.mark.parametrize("name", ["../a.mp4", "/etc/passwd", "b/../../a.mp4", "https://example.org/a.mp4"])
def test_nothing_outside_of_the_root_is_named(root, tmp_path, name):
    with pytest.raises(ValueError, match=r"outside of the data root|is an address"):
        read_rows(write_rows(tmp_path / "rows.json", [talk("a", video=name)]), root)


def test_a_link_out_of_the_root_is_not_followed(root, processor, tmp_path, clip):
    (root / "link.mp4").symlink_to(clip)
    rows = write_rows(tmp_path / "rows.json", [talk("a", video="link.mp4")])
    with pytest.raises(ValueError, match="leads out of the data root"):
        DynImgDataset(rows, processor, root=root)[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"video": "a.mp4"}, "neither `messages` nor `conversations`"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "ends with no answer"),
        ({"conversations": [{"from": "dog", "value": "a"}]}, "a turn of 'dog'"),
        (talk("a", ""), "an answer is empty"),
        (talk("a", video="a.mp4", image="a.png"), "both a video and an image"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "an item of type 'audio'"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "a video item without a file"),
    ],
)
def test_rows_that_are_no_conversation_are_named(root, processor, tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        DynImgDataset(write_rows(tmp_path / "rows.json", [row]), processor, root=root)


def test_a_wrong_root_is_told_at_once(processor, tmp_path):
    rows = write_rows(tmp_path / "rows.json", [talk("a", video=f"{i}.mp4") for i in range(3)])
    with pytest.raises(FileNotFoundError, match="none of the first 3 files is there"):
        DynImgDataset(rows, processor)


def broken_set(root, tmp_path, processor, **options):
    for name, content in (("empty.mp4", b""), ("noise.mp4", b"no video at all" * 99)):
        (root / name).write_bytes(content)
    videos = ["a.mp4"] * 16 + ["empty.mp4", "a.mp4", "noise.mp4", "a.mp4"]
    rows = [talk("a", id=f"{i}_{video}", video=video) for i, video in enumerate(videos)]
    source = write_rows(tmp_path / "rows.json", rows)
    return DynImgDataset(source, processor, root=root, quarantine=tmp_path / "out" / "broken.jsonl", **options)


def test_broken_videos_are_replaced_by_the_next_row_and_named_once(root, tmp_path, processor):
    dataset = broken_set(root, tmp_path, processor, max_broken=0.1)
    loader = DataLoader(dataset, batch_size=5, num_workers=2, collate_fn=lambda s: [x["id"] for x in s])
    for _ in range(2):
        assert [name for batch in loader for name in batch][15:] == [
            "15_a.mp4",
            "17_a.mp4",
            "17_a.mp4",
            "19_a.mp4",
            "19_a.mp4",
        ]
    named = read_quarantine(dataset.quarantine)
    assert sorted(named) == ["16_empty.mp4", "18_noise.mp4"]
    assert "empty.mp4" in named["16_empty.mp4"]
    assert dataset.all_broken() == named


def test_above_the_allowed_share_it_stops_with_the_list(root, tmp_path, processor):
    dataset = broken_set(root, tmp_path, processor, max_broken=0.05)
    with pytest.raises(TooManyBroken, match=r"2 of 20 rows cannot be read(.|\n)*16_empty.mp4(.|\n)*18_noise.mp4"):
        list(DataLoader(dataset, batch_size=5, num_workers=1, collate_fn=list))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_kept_is_composed_once_also_in_workers(root, tmp_path, monkeypatch, workers):
    log, compose = tmp_path / "log", DynImgProcessor.compose
    log.touch()

    def logged(self, video, **options):
        with log.open("a") as file:
            file.write(f"{video}\n")
        return compose(self, video, **options)

    monkeypatch.setattr(DynImgProcessor, "compose", logged)
    data = write_rows(tmp_path / "rows.json", [talk("a", id=str(i), video="a.mp4") for i in range(4)])
    base = write_tiny("llava_onevision", tmp_path / "base")
    options = {"data": str(data), "data_root": str(root), "keep_composed": True, "dataloader_num_workers": workers}
    with pytest.raises(ValueError, match="set random_prompts=false beside it"):
        quick(base, tmp_path / "out", **options)
    quick(base, tmp_path / "out", **options, random_prompts=False, max_steps=6)  # three epochs
    assert len(log.read_text().splitlines()) == 1


def draws(dataset, workers):
    loader = DataLoader(
        dataset, num_workers=workers, collate_fn=lambda s: [f.pts_seconds for f in s[0]["videos"][0][0].frames]
    )
    return list(loader)


def test_prompt_frames_depend_on_seed_row_and_epoch_alone(root, processor, tmp_path, many_iframes_clip):
    shutil.copy(many_iframes_clip, root / "b.mp4")
    rows = write_rows(tmp_path / "rows.json", [talk("a", id=str(i), video="b.mp4") for i in range(4)])
    dataset = DynImgDataset(rows, processor, root=root, seed=1)
    first = draws(dataset, 0)
    assert first == draws(dataset, 2)
    assert len({tuple(times) for times in first}) > 1
    assert [dataset[3]["videos"][0][0].frames, dataset[0]["videos"][0][0].frames] == [
        dataset[3]["videos"][0][0].frames,
        dataset[0]["videos"][0][0].frames,
    ]
    dataset.set_epoch(1)
    assert draws(dataset, 2) != first
    dataset.set_epoch(0)
    assert draws(dataset, 0) == first
    fixed = DynImgDataset(rows, processor, root=root)
    assert len({tuple(times) for times in draws(fixed, 0)}) == 1


def test_budgets_are_drawn_by_seed_row_and_epoch_alone(root, processor, tmp_path):
    rows = write_rows(tmp_path / "rows.json", [talk("a", id=str(i), video="a.mp4") for i in range(6)])
    dataset = DynImgDataset(rows, processor, root=root, least_keep=0.2, keep_seed=1)

    def keeps(workers=0):
        return list(DataLoader(dataset, num_workers=workers, collate_fn=lambda samples: samples[0]["keep"]))

    first = keeps()
    assert keeps(workers=2) == first
    assert len(set(first)) == 6
    assert all(0.2 <= keep <= 1 for keep in first)
    dataset.set_epoch(1)
    assert not set(keeps()) & set(first)
    batch = DynImgCollator(processor)([dataset[3], dataset[0]])
    number = round(dataset[3]["keep"] * 144)
    assert batch["dynimg_kept"].tolist() == [number] * 2
    visual = (batch["input_ids"] == processor.image_token_id).sum(-1)
    assert visual.tolist() == [number * processor.config.num_images] * 2
    for least in (0, 1.5):
        with pytest.raises(ValueError, match=f"least_keep={least}: allowed are shares above 0, up to keep=1.0"):
            DynImgDataset(rows, processor, root=root, least_keep=least)


def test_lengths_are_known_without_opening_a_file(processor):
    dataset = DynImgDataset("motion_qa_mc@held_out:10", processor)
    table = dataset.as_hf()
    assert table["length"] == dataset.lengths
    assert min(dataset.lengths) > processor.config.tokens_per_video
    assert set(table[0]) == {"id", "messages", "videos", "images", "keep"}


def test_drawn_data_sets_by_name():
    for source, form in (("motion_qa_mc:7", "_mc"), ("motion_qa_open:7", "_open")):
        rows = read_rows(source)
        assert len(rows) == 7
        assert all(row.id.startswith("train_") and row.id.endswith(form) for row in rows)
    assert len(read_rows("motion_qa")) == 240
    assert {row.id.rpartition("_")[2] for row in read_rows("motion_qa:4")} == {"mc", "open"}
    with pytest.raises(ValueError, match="unknown split 'test'"):
        read_rows("motion_qa_mc@test:3")
    with pytest.raises(FileNotFoundError, match="data sets: motion_qa"):
        read_rows("motion")
