"""Training in process: theta moves on every engine, probes stop what would not, runs resume, adapters come back."""

from __future__ import annotations

import json
import math
import shutil
import warnings

import pytest
import torch
from modelling import noise_video, patched
from peft import get_peft_model
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from trainings import largest_difference, losses, quick, speaking_base, talk, weights, write_rows
from transformers import Trainer, TrainingArguments, set_seed
from transformers.models.qwen2 import modeling_qwen2
from trl import SFTConfig, SFTTrainer
from typer.testing import CliRunner

from dynimg_plugin import DynImgConfig, apply_dynimg, cli, describe_dynimg, load, overriding, session
from dynimg_plugin.evaluation.during import evaluate_model
from dynimg_plugin.evaluation.model import LlavaDynImg
from dynimg_plugin.loading import load_adapter
from dynimg_plugin.ops import implementations
from dynimg_plugin.ops.native import Native
from dynimg_plugin.tiny import build_tiny, write_tiny
from dynimg_plugin.training import (
    PRESETS,
    DynImgCallback,
    DynImgCollator,
    DynImgDataset,
    TooManyBroken,
    lora_config,
    parameter_groups,
    plan,
    read_config,
)
from dynimg_plugin.training.config import workers
from dynimg_plugin.training.probes import check_travel
from dynimg_plugin.training.run import training_arguments

NEEDED = {"base": "b", "output": "o", "data": "motion_qa"}


@pytest.fixture(scope="module", params=["llava_onevision", "llava"])
def learned(request, tmp_path_factory):
    """A base and the adapter that `dynimg train` makes of it in 24 steps."""
    folder = tmp_path_factory.mktemp(request.param)
    base = speaking_base(request.param, folder / "base")
    options = {"data": "motion_qa_mc:20", "max_steps": 24, "per_device_train_batch_size": 4, "lora_r": 16}
    return base, quick(base, folder / "adapter", **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny("llava_onevision", tmp_path_factory.mktemp("base"))


def theta_norms(model):
    return describe_dynimg(model).theta_norms


def logits(model, processor):
    with torch.no_grad():
        return model.eval()(**processor(text="What?", videos=noise_video(), return_tensors="pt")).logits


# -- the whole way -------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_moves_theta_and_beats_the_untrained_base(learned):
    base, result = learned
    assert losses(result)[-1] < 0.5 * losses(result)[0]
    model, processor = load(base, result.output)
    assert all(norm > 0.02 for norm in theta_norms(model).values())
    untrained = load(base, config=processor.config)[0]
    before, after = (evaluate_model(m, processor, "motion_qa_mc", limit=20) for m in (untrained, model))
    assert after["motion_qa_mc/readable"] > 50 > before["motion_qa_mc/readable"]
    assert after["motion_qa_mc/accuracy"] > before["motion_qa_mc/accuracy"]


def test_the_adapter_folder_is_complete_and_plain(learned):
    base, result = learned
    names = {path.name for path in result.output.iterdir() if path.is_file()}
    assert {"adapter_config.json", "adapter_model.safetensors", "dynimg_config.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    stored = json.loads((result.output / "adapter_config.json").read_text("utf-8"))
    assert not [key for key in stored if "dynimg" in key]
    card = (result.output / "README.md").read_text("utf-8")
    assert f'load("{base}", "adapter")' in card
    assert "| steps | 24 |" in card
    assert "with DynImgs and learnable 4D RoPE" in card


def test_a_fresh_base_with_the_adapter_gives_the_same_logits_as_the_merged_checkpoint(learned, tmp_path):
    base, result = learned
    model, processor = load(base, result.output)
    again = load(base, result.output)[0]
    assert torch.equal(logits(model, processor), logits(again, processor))
    done = CliRunner().invoke(cli.app, ["merge", str(result.output), "-o", str(tmp_path / "merged")])
    assert done.exit_code == 0, done.output
    merged, its_processor = load(tmp_path / "merged")
    assert its_processor.config == processor.config
    assert theta_norms(merged) == theta_norms(model)
    torch.testing.assert_close(logits(merged, processor), logits(model, processor), atol=2e-4, rtol=0)


def test_lora_alpha_can_be_another_in_use(learned):
    base, result = learned
    model, processor = load(base, result.output)
    weak, strong = load(base, result.output, lora_alpha=1)[0], load(base, result.output, lora_alpha=128)[0]
    assert torch.equal(logits(strong, processor), logits(model, processor))
    assert not torch.equal(logits(weak, processor), logits(model, processor))
    served = LlavaDynImg(str(base), adapter=str(result.output), lora_alpha=1, device="cpu")
    assert torch.equal(logits(served.model, processor), logits(weak, processor))
    with pytest.raises(ValueError, match="needs an adapter"):
        load(base, lora_alpha=4)


def test_an_adapter_finds_its_model_or_says_why_not(learned, tmp_path):
    base, result = learned
    family = json.loads((base / "config.json").read_text("utf-8"))["model_type"]
    with pytest.raises(ValueError, match="is not patched; call apply_dynimg"):
        load_adapter(build_tiny(family)[0], result.output)
    with pytest.raises(ValueError, match="but the model is patched with"):
        load_adapter(apply_dynimg(build_tiny(family)[0], DynImgConfig(num_images=2)), result.output)
    fitting = apply_dynimg(build_tiny(family)[0], DynImgConfig(num_images=1))
    assert all(norm > 0 for norm in theta_norms(load_adapter(fitting, result.output)).values())
    pickled = shutil.copytree(result.output, tmp_path / "pickled", ignore=shutil.ignore_patterns("checkpoint-*"))
    torch.save(weights(pickled), pickled / "adapter_model.bin")
    (pickled / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pickled adapters \(\.bin\) are not opened"):
        load(base, pickled)


# -- engines -------------------------------------------------------------------------------------------------------


def own_trainer(engine, base, folder, *, callback=True, **arguments):
    """As a user's script builds it."""
    model, processor = load(base, config=DynImgConfig(num_images=1))
    common = {"output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 2, "logging_steps": 1}
    common |= {"save_strategy": "no", "learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True}
    common |= {"dataloader_pin_memory": False, "remove_unused_columns": False, "bf16": False, **arguments}
    dataset = DynImgDataset("motion_qa_mc:6", processor)
    set_seed(0)
    model = get_peft_model(model, lora_config(8, 16, 0.0))
    own = {"model": model, "processing_class": processor}
    if engine == "trainer":
        own |= {
            "args": TrainingArguments(**common),
            "data_collator": DynImgCollator(processor),
            "train_dataset": dataset,
        }
        trainer = Trainer(**own)
    elif engine == "trl":
        args = SFTConfig(max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, **common)
        own |= {"args": args, "data_collator": DynImgCollator(processor), "train_dataset": dataset.as_hf()}
        trainer = SFTTrainer(**own)
    else:
        args = SFTConfig(max_length=None, **common)
        trainer = SFTTrainer(**own, args=args, train_dataset=stock_rows(dataset, processor))
    if callback:
        trainer.add_callback(DynImgCallback(trainer))
    return trainer


def stock_rows(dataset, processor):
    """Precomposed DynImgs for TRL's own collator: pictures, and prompt and completion as text."""
    from datasets import Dataset

    rows = []
    for sample in dataset:
        prompt = processor.apply_chat_template(sample["messages"][:1], add_generation_prompt=True)
        answer = sample["messages"][1]["content"][0]["text"] + processor.tokenizer.eos_token
        images = [dynimg.image for dynimg in sample["videos"][0]]
        rows.append({"images": images, "prompt": prompt, "completion": answer})
    return Dataset.from_list(rows)


def test_theta_moves_on_every_engine_and_checkpointing_changes_no_loss(base, tmp_path):
    runs = {}
    for engine in ("trainer", "trl", "trl_stock"):
        for checkpointing in (False, True):
            trainer = own_trainer(engine, base, tmp_path, activation_checkpointing=checkpointing)
            trainer.train()
            assert all(norm > 0 for norm in theta_norms(trainer.model).values())
            runs[engine, checkpointing] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert runs[engine, True] == runs[engine, False]
    for engine in ("trl", "trl_stock"):  # the same tokens, labels and order
        assert runs[engine, False] == pytest.approx(runs["trainer", False], abs=1e-5)


@pytest.mark.parametrize("engine", ["trainer", "trl"])
def test_every_batch_has_a_budget_of_its_own(base, tmp_path, engine, monkeypatch):
    seen, encode = [], session.encode_dynimgs

    def noted(core, pixels, config=None):
        encoded = encode(core, pixels, config)
        seen.append(encoded.pooler_output[0].shape[0])
        return encoded

    for module in (session, overriding):
        monkeypatch.setattr(module, "encode_dynimgs", noted)
    options = {"engine": engine, "data": "motion_qa_mc:8", "eval_data": "motion_qa_mc@held_out:2", "max_steps": 4}
    result = quick(base, tmp_path / "out", **options, least_keep=0.1, eval_strategy="steps", eval_steps=4)
    assert all(math.isfinite(loss) for loss in losses(result))
    trained = seen[-5:-1]
    assert len(set(trained)) > 2
    assert all(14 <= number < 144 for number in trained)
    assert seen[-1] == 144  # evaluation takes all


def test_theta_has_a_group_of_its_own_without_weight_decay(base, tmp_path):
    trainer = own_trainer("trainer", base, tmp_path, weight_decay=0.1)
    trainer.train()
    groups = trainer.optimizer.param_groups
    assert [len(group["params"]) for group in groups if group["initial_lr"] == 1e-2] == [3]
    assert groups[-1]["weight_decay"] == 0
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
    assert {"theta_t", "theta_h", "theta_w"} <= set(trainer.state.log_history[0])


def test_a_plain_loop_gets_the_same_groups():
    model, _ = patched("llava")
    groups = parameter_groups(model, lr=1e-4, theta_lr=1e-2, weight_decay=0.1)
    assert [group["lr"] for group in groups] == [1e-4, 1e-4, 1e-2]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {parameter.shape for parameter in groups[2]["params"]} == {torch.Size([8])}


def test_mixed_rows_train_in_one_batch_and_text_alone_leaves_theta(base, tmp_path):
    rows = write_rows(tmp_path / "rows.json", [talk("2 and 2?", "four"), talk("3 and 3?", "six")])
    mixed = quick(base, tmp_path / "mixed", data=[str(rows), "motion_qa_mc:2"], per_device_train_batch_size=4)
    assert all(norm > 0 for norm in theta_norms(load(base, mixed.output)[0]).values())
    alone = quick(base, tmp_path / "alone", data=str(rows))
    assert set(theta_norms(load(base, alone.output)[0]).values()) == {0.0}
    assert losses(alone)[-1] < losses(alone)[0]


def test_evaluation_on_a_task_leaves_the_training_as_it_was(base, tmp_path):
    plain = quick(base, tmp_path / "plain", data="motion_qa_mc:6", lora_dropout=0.3)
    options = {"eval_tasks": "motion_qa_mc", "eval_limit": 2, "eval_every": 2, "lora_dropout": 0.3}
    watched = quick(base, tmp_path / "watched", data="motion_qa_mc:6", **options)
    assert losses(watched) == losses(plain)
    assert largest_difference(plain.output, watched.output) == 0
    scores = [entry["eval_motion_qa_mc/readable"] for entry in watched.history if "eval_motion_qa_mc/readable" in entry]
    assert len(scores) == 2
    with pytest.raises(ValueError, match="knows no task nonsense"):
        quick(base, tmp_path / "no", data="motion_qa_mc:2", eval_tasks="nonsense")


# -- resume --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["lora_default", "paper_full"])
def test_resuming_equals_the_uninterrupted_run(base, tmp_path, preset):
    """Over an epoch's end, with dropout and prompt frames drawn anew in every epoch."""
    options = {"data": "motion_qa_mc:6", "max_steps": 5, "save_steps": 2, "save_total_limit": None, "preset": preset}
    options |= {"lora_dropout": 0.2, "seed": 3} if preset == "lora_default" else {"lora_r": 0}
    straight = quick(base, tmp_path / "straight", **options)
    shutil.copytree(tmp_path / "straight" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    half_written = shutil.copytree(tmp_path / "straight" / "checkpoint-4", tmp_path / "again" / "checkpoint-4")
    (half_written / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match=r"holds checkpoint-2 of an earlier run; give resume_from_checkpoint=true"):
        quick(base, tmp_path / "again", **options)
    again = quick(base, tmp_path / "again", resume_from_checkpoint="auto", **options)
    assert losses(again) == losses(straight)
    assert largest_difference(straight.output, again.output) == 0.0
    assert load(again.output)[0] if preset == "paper_full" else load(base, again.output)[0]


# -- probes --------------------------------------------------------------------------------------------------------


class RotaryWithoutAngles(torch.autograd.Function):
    """A fused rotary kernel's contract: gradients for q and k, none for cos and sin."""

    @staticmethod
    def forward(context, q, k, cos, sin):
        context.save_for_backward(cos, sin)
        turn = lambda x: torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1)  # noqa: E731
        return q * cos + turn(q) * sin, k * cos + turn(k) * sin

    @staticmethod
    def backward(context, grad_q, grad_k):
        cos, sin = context.saved_tensors
        back = lambda g: torch.cat((g[..., g.shape[-1] // 2 :], -g[..., : g.shape[-1] // 2]), -1)  # noqa: E731
        return grad_q * cos + back(grad_q * sin), grad_k * cos + back(grad_k * sin), None, None


def fused(q, k, cos, sin, unsqueeze_dim=1, **_):
    return RotaryWithoutAngles.apply(q, k, cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim))


def test_a_rotary_kernel_without_gradient_stops_the_run(base, tmp_path, monkeypatch):
    monkeypatch.setattr(
        implementations, "load_native", lambda: Native(why="not here")
    )  # it would take the kernel's place
    monkeypatch.setattr(modeling_qwen2, "apply_rotary_pos_emb", fused)
    with pytest.raises(ValueError, match=r"gives theta no gradient(.|\n)*liger_kernel_config=\{'rope': False\}"):
        quick(base, tmp_path, data="motion_qa_mc:2")
    plain = quick(base, tmp_path, data="motion_qa_mc:2", rope_4d=False, max_steps=1)  # nothing to lose there
    assert "4D RoPE" not in (plain.output / "README.md").read_text("utf-8")


def test_reentrant_checkpointing_stops_the_run(base, tmp_path):
    options = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match=r"activation_checkpointing_kwargs=\{'use_reentrant': False\}"):
        quick(base, tmp_path, data="motion_qa_mc:2", **options)
    trainer = own_trainer("trainer", base, tmp_path)
    trainer.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant"):
        trainer.train()


@pytest.mark.parametrize(("theta_lr", "steps", "warns"), [(1e-2, 1000, False), (1e-3, 2400, False), (1e-2, 4, True)])
def test_theta_that_can_hardly_move_is_warned_of(theta_lr, steps, warns):
    """1 in all is the limit: the miniature study's theta did all it could at 1.2 and half at 0.12."""
    warning = check_travel(theta_lr, steps)
    assert (warning is not None) == warns
    if warning:
        assert "travel about 0.02 (theta_lr 0.01 x 4 steps" in warning


def test_a_frozen_theta_and_a_shared_group_stop_the_run(base, tmp_path):
    trainer = own_trainer("trainer", base, tmp_path)
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and "theta" not in name)
    with pytest.raises(ValueError, match="theta is frozen; with peft use lora_config"):
        trainer.train()
    trainer = own_trainer("trainer", base, tmp_path)
    trainer.optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad])
    with pytest.raises(ValueError, match="not in a parameter group of its own"):
        trainer.train()


def test_an_unpatched_model_is_told_when_the_callback_is_made(base, tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    trainer = Trainer(build_tiny("llava")[0], arguments, train_dataset=[1])
    with pytest.raises(ValueError, match="is not patched; call apply_dynimg"):
        DynImgCallback(trainer)


# -- data ----------------------------------------------------------------------------------------------------------


def test_broken_videos_are_named_in_a_file_or_stop_the_run(base, tmp_path, clip):
    shutil.copy(clip, tmp_path / "good.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    names = ["bad.mp4" if i == 3 else "good.mp4" for i in range(10)]
    rows = write_rows(tmp_path / "rows.json", [talk("What?", id=f"row{i}", video=v) for i, v in enumerate(names)])
    result = quick(base, tmp_path / "out", data=str(rows), max_steps=5, max_broken=0.1)
    assert list(result.broken) == ["row3"]
    lines = (tmp_path / "out" / "broken_rows.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["row3"]
    assert "bad.mp4" in lines[0]
    assert result.history[-2]["broken_rows"] == 1
    with pytest.raises(TooManyBroken, match="row3"):
        quick(base, tmp_path / "strict", data=str(rows), max_steps=5, max_broken=0)


def test_videos_and_pictures_need_batches_of_one(base, tmp_path, clip):
    shutil.copy(clip, tmp_path / "a.mp4")
    rows = write_rows(tmp_path / "rows.json", [talk("a", video="a.mp4"), talk("b", image="b.png")])
    with pytest.raises(ValueError, match="set per_device_train_batch_size=1"):
        quick(base, tmp_path / "out", data=str(rows))


def test_grouping_by_length_opens_nothing(base, tmp_path):
    result = quick(base, tmp_path, data="motion_qa:8", train_sampling_strategy="group_by_length", max_steps=1)
    assert len(losses(result)) == 1


# -- config and plan -----------------------------------------------------------------------------------------------


def test_file_preset_and_words_go_over_each_other(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "preset: pllava_lora\nbase: b\noutput: o\ndata: [a.json, b.json]\nnum_images: 8\nlearning_rate: 1e-4\n"
    )
    config = read_config(file, ["max_steps=7", "fusion=none", "data=motion_qa_mc:5", "lora_dropout=0"])
    assert (config.lora_r, config.lora_alpha, config.lora_targets) == (128, 32, ("q_proj", "v_proj"))
    assert config.data == ("motion_qa_mc:5",)
    assert config.dynimg == {"num_images": 8, "fusion": "none"}
    assert config.arguments["learning_rate"] == 1e-4
    assert config.arguments["max_steps"] == 7
    assert config.lora_dropout == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learning_rat=1"], "unknown training option 'learning_rat'; did you mean learning_rate"),
        (["max_steps"], "not of the form key=value"),
        (["base="], "base missing"),
        (["engine=torch"], "engine='torch' is not known; allowed: trainer, trl"),
        (["train_parts=head"], "train_parts='head' is not known"),
        (["train_parts=language_model"], "exclude each other"),
        (["lora_r=0", "train_parts=[]"], "nothing would be trained"),
        (["max_broken=2"], "is no share"),
        (["preset=mine"], "presets: paper_full"),
    ],
)
def test_a_wrong_option_names_the_right_ones(words, message):
    with pytest.raises(ValueError, match=message):
        read_config("lora_default", [f"{key}={value}" for key, value in NEEDED.items()] + words)


def test_a_missing_file_names_the_presets():
    with pytest.raises(FileNotFoundError, match="neither a YAML file nor a preset"):
        read_config("mine.yaml")


@pytest.mark.parametrize(("cpus", "expected"), [(1, 1), (2, 2), (64, 4)])
def test_presets_start_no_more_workers_than_this_process_has_cpus(monkeypatch, cpus, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cpus)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: cpus)
    assert workers() == expected


def test_presets_fit_the_loader_to_the_machine(tmp_path):
    config = read_config(
        "lora_default", [f"base={tmp_path}", f"output={tmp_path}", "data=motion_qa_mc:1", "bf16=false"]
    )
    arguments = training_arguments(config)
    with warnings.catch_warnings():
        for message in ("This DataLoader will create", "'pin_memory' argument is set"):
            warnings.filterwarnings("error", message)
        workers, pinned = arguments.dataloader_num_workers, arguments.dataloader_pin_memory
        assert len(list(DataLoader(range(8), num_workers=workers, pin_memory=pinned))) == 8


def test_global_batch_size_sets_the_accumulation(base, tmp_path):
    options = {"data": "motion_qa_mc:8", "max_steps": 1}
    result = quick(base, tmp_path / "a", global_batch_size=4, **options)
    assert result.history[0]["epoch"] == 0.5
    with pytest.raises(ValueError, match="no multiple of 2 rows at once"):
        quick(base, tmp_path / "b", global_batch_size=3, **options)


def seven_billion():
    from transformers import LlavaOnevisionConfig

    vision = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 14}
    vision |= {"num_hidden_layers": 26, "num_attention_heads": 16, "image_size": 384, "vision_use_head": False}
    text = {"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944}
    text |= {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False}
    return LlavaOnevisionConfig(vision_config=vision, text_config=text)


def test_every_preset_prints_its_parameters_and_memory_for_7b():
    configs = {name: read_config(name, [f"{key}={value}" for key, value in NEEDED.items()]) for name in PRESETS}
    plans = {name: plan(configs[name], name=name, model_config=seven_billion()) for name in PRESETS}
    assert plans["paper_full"].trained["language_model"] == 7_615_616_512
    assert plans["pllava_lora"].trained["lora"] == 28 * 128 * (2 * 3584 + 3584 + 512)  # A and B of q and v
    assert {made.trained["vision_tower"] for made in plans.values()} == {0}
    assert {made.trained["theta"] for made in plans.values()} == {3 * 64}
    table = str(plans["lora_default"])
    assert "lora_default: trained parameters" in table
    assert "together" in table
    assert plans["paper_full"].optimizer > 80e9 > 30e9 > plans["lora_default"].weights


def test_dry_run_trains_nothing(base, tmp_path):
    words = [f"base={base}", f"output={tmp_path / 'out'}", "data=motion_qa"]
    done = CliRunner().invoke(cli.app, ["train", "lora_default", *words, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "trained parameters" in done.output
    assert not (tmp_path / "out").exists()


# -- LLaVA's own adapters ------------------------------------------------------------------------------------------


def llava_output(folder, base):
    """What LLaVA's LoRA training writes: pickles, its own names, no theta."""
    model = get_peft_model(build_tiny("llava")[0], lora_config(4, 8, 0.0, parts=("projector",)))
    folder.mkdir()
    torch.manual_seed(0)
    adapter, projector = {}, {}
    for name, value in model.named_parameters():
        if "lora_" in name:
            own = name.replace("model.language_model.layers", "model.layers").replace(".default", "")
            adapter[own] = torch.randn_like(value) * 0.1
        elif "multi_modal_projector.modules_to_save" in name:
            index = "0" if "linear_1" in name else "2"
            projector[f"base_model.model.model.mm_projector.{index}.{name.rpartition('.')[2]}"] = torch.randn_like(
                value
            )
    torch.save(adapter, folder / "adapter_model.bin")
    torch.save(projector, folder / "non_lora_trainables.bin")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "lora_dropout": 0.05}), "utf-8")
    return adapter, projector


def test_convert_makes_an_adapter_of_llavas_pickles(tmp_path):
    base = write_tiny("llava", tmp_path / "base")
    adapter, projector = llava_output(tmp_path / "old", base)
    words = ["convert", str(tmp_path / "old"), "--base", str(base), "-o", str(tmp_path / "new")]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    model, _ = load(base, tmp_path / "new")
    loaded = {name.replace(".default", ""): value for name, value in model.state_dict().items()}
    for name, value in adapter.items():
        assert torch.equal(loaded[name.replace("model.layers", "model.language_model.layers")], value)
    first = projector["base_model.model.model.mm_projector.0.weight"]
    assert torch.equal(model.get_submodule("base_model.model.model.multi_modal_projector").linear_1.weight, first)
    assert set(theta_norms(model).values()) == {0.0}


def test_convert_refuses_what_does_not_fit(tmp_path):
    base = write_tiny("llava", tmp_path / "base")
    _, projector = llava_output(tmp_path / "old", base)
    del projector["base_model.model.model.mm_projector.2.bias"]
    (tmp_path / "old" / "non_lora_trainables.bin").unlink()
    with pytest.raises(FileNotFoundError, match="non_lora_trainables"):
        convert_old(tmp_path, base)
    save_file(projector, tmp_path / "old" / "non_lora_trainables.safetensors")
    with pytest.raises(ValueError, match=r"linear_2\.bias is missing"):
        convert_old(tmp_path, base)


def convert_old(folder, base):
    from dynimg_plugin.training.exporting import convert

    return convert(folder / "old", folder / "new", base=str(base))
