"""`dynimg assemble`: parts keep their weights, both towers give the same tokens, the result trains and evaluates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from parts import DEPTH, NORMALISATION, TEMPLATE, WIDE, write_config, write_language, write_siglip, write_timm
from PIL import Image
from safetensors.torch import load_file, save_file
from trainings import QUICK, losses
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from typer.testing import CliRunner

from dynimg_plugin import cli, describe_dynimg, load
from dynimg_plugin.assembling import assemble, count_parts, read_tower
from dynimg_plugin.assembling.towers import import_timm
from dynimg_plugin.eval_tasks.motion_qa import dataset
from dynimg_plugin.evaluation.manifest import tasks_path
from dynimg_plugin.tiny import Kit
from dynimg_plugin.training import read_config, train

QWEN = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
TALK = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What moves?"}]}]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with siglip/, vit/ (the same tower by timm) and language/."""
    folder = tmp_path_factory.mktemp("parts")
    write_timm(folder / "vit", write_siglip(folder / "siglip"))
    write_language(folder / "language")
    return folder


@pytest.fixture(scope="module")
def sources(parts):
    return {"timm": f"timm:local-dir:{parts / 'vit'}", "hf": f"hf:{parts / 'siglip'}"}


@pytest.fixture(scope="module")
def assembled(parts, sources, tmp_path_factory):
    """{"timm": folder, "hf": folder}, as the command writes them."""
    folders = {}
    for kind, source in sources.items():
        folders[kind] = tmp_path_factory.mktemp(kind) / "model"
        code, out = dynimg("--vision", source, "--language", parts / "language", "-o", folders[kind], "--seed", 3)
        assert code == 0
        assert f"-> {folders[kind]}" in out
    return folders


def dynimg(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["assemble", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def pixels(count: int = 2) -> torch.Tensor:
    side = Kit.SIGLIP_SIZE
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_both_sources_give_the_same_grid_tokens_and_features(assembled, clip):
    seen = {}
    for kind, folder in assembled.items():
        model, processor = load(folder)
        assert (processor.config.grid, processor.config.patch_size) == (27, Kit.PATCH_SIZE)
        inputs = processor(text="What moves?", videos=[clip], return_tensors="pt")
        assert (inputs["input_ids"] == processor.image_token_id).sum() == 576
        seen[kind] = inputs, torch.cat(model.model.get_image_features(inputs["pixel_values"]).pooler_output)
        assert len(seen[kind][1]) == 576
        with torch.no_grad():
            assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
    for name, value in seen["timm"][0].items():
        assert torch.equal(value, seen["hf"][0][name]), name
    torch.testing.assert_close(seen["timm"][1], seen["hf"][1], atol=1e-5, rtol=0)
    assert seen["hf"][1].std() > 0.1


def test_the_layer_before_the_last_is_read_and_what_follows_it_is_left_out(parts, sources, assembled):
    whole = write_siglip(parts / "again").vision_model
    with torch.no_grad():
        states = whole(pixels(), output_hidden_states=True).hidden_states
        for layer in (-1, -2):
            for source in sources.values():
                tower = read_tower(source, layer)
                found = tower.load(torch.float32)(pixels(), output_hidden_states=True).hidden_states[-1]
                found = found.flatten(2).mT if found.ndim == 4 else found
                torch.testing.assert_close(found, states[layer], atol=1e-5, rtol=0)
                assert tower.layers == (DEPTH + 1 + layer, DEPTH)
    stored = load_file(assembled["timm"] / "model.safetensors")
    assert not [name for name in stored if f"blocks.{DEPTH - 1}." in name or "attn_pool" in name]


def test_timms_own_gelu_is_another_than_transformers_and_would_be_seen(parts, sources):
    write_timm(parts / "exact", write_siglip(parts / "once more"), activation="gelu")
    exact, tanh = (read_tower(s).load(torch.float32) for s in (f"timm:local-dir:{parts / 'exact'}", sources["timm"]))
    with torch.no_grad():
        assert (exact(pixels()).last_hidden_state - tanh(pixels()).last_hidden_state).abs().max() > 1e-4


def test_a_siglip_tower_also_runs_unpatched_in_transformers(assembled):
    model = AutoModelForImageTextToText.from_pretrained(assembled["hf"])
    processor = AutoProcessor.from_pretrained(assembled["hf"])
    text = processor.apply_chat_template([{**TALK[0], "content": [{"type": "image"}]}], add_generation_prompt=True)
    inputs = processor(images=Image.new("RGB", (90, 60), "red"), text=text, return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 27 * 27
    assert torch.isfinite(model(**inputs).logits).all()


@pytest.mark.parametrize("tied", [False, True])
def test_the_language_model_is_the_one_that_was_given(parts, sources, assembled, tied, tmp_path):
    folder, language = assembled["hf"], parts / "language"
    if tied:
        folder, language = tmp_path / "model", tmp_path / "language"
        write_language(language, tie_word_embeddings=True)
        assemble(sources["hf"], str(language), folder)
    own = AutoModelForCausalLM.from_pretrained(language)
    model, _ = load(folder)
    ids = torch.tensor([[5, 90, 17, 200, 41]])
    expected, found = own(input_ids=ids).logits, model(input_ids=ids).logits
    rows = expected.shape[-1]
    assert torch.equal(found[..., :rows], expected)
    assert found.shape[-1] % 64 == 0  # it had no room for <image> and <video>
    assert not found[..., rows:].any()
    assert model.config.image_token_id >= rows
    assert model.generation_config.eos_token_id == own.generation_config.eos_token_id
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied


def test_the_projector_comes_from_the_seed_alone(parts, sources, assembled, tmp_path):
    torch.manual_seed(11)
    assemble(sources["hf"], str(parts / "language"), tmp_path / "other", seed=4, dtype="bfloat16")
    same, timms, other = (
        load_file(folder / "model.safetensors")["multi_modal_projector.linear_1.weight"]
        for folder in (assembled["hf"], assembled["timm"], tmp_path / "other")
    )
    assert torch.equal(same, timms)
    assert not torch.equal(same, other.float())
    assert same.abs().max() <= WIDE**-0.5  # nn.Linear's own bound
    assert {value.dtype for value in load_file(tmp_path / "other/model.safetensors").values()} == {torch.bfloat16}
    assert load(tmp_path / "other")[0].dtype == torch.bfloat16


def test_the_processor_has_the_towers_numbers_and_the_language_models_template(parts, assembled):
    own = AutoTokenizer.from_pretrained(parts / "language")
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    for folder in assembled.values():
        processor = AutoProcessor.from_pretrained(folder)
        images = processor.image_processor
        assert {name: list(getattr(images, name)) for name in NORMALISATION} == NORMALISATION
        assert dict(images.size) == Kit.square(Kit.SIGLIP_SIZE)
        assert processor.tokenizer.encode("<image>") == [processor.image_token_id]
        for talk in (plain, [*plain, {"role": "assistant", "content": "Hello."}]):
            expected = own.apply_chat_template(talk, chat_template=TEMPLATE, tokenize=False)
            assert processor.apply_chat_template(talk) == expected
        start = "<|im_start|>system\nYou are Tiny.<|im_end|>\n<|im_start|>user\n"
        asked = processor.apply_chat_template(TALK, add_generation_prompt=True)
        assert asked == start + "<video>\nWhat moves?<|im_end|>\n<|im_start|>assistant\n"


def test_clip_drops_its_cls_token(parts, tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    CLIPVisionModel(CLIPVisionConfig(**Kit().clip_tower())).save_pretrained(tmp_path / "clip")
    Kit().clip_images().save_pretrained(tmp_path / "clip")
    source, language = f"hf:{tmp_path / 'clip'}", parts / "language"
    code, _ = dynimg("--vision", source, "--language", language, "-o", tmp_path / "model", "-O", "num_images=1")
    assert code == 0
    model, processor = load(tmp_path / "model")
    assert (processor.config.grid, processor.config.num_images) == (24, 1)
    inputs = processor(text="What?", images=[Image.new("RGB", (96, 96), "red")], return_tensors="pt")
    assert torch.isfinite(model(**inputs).logits).all()
    base = processor.base(images=Image.new("RGB", (90, 60), "red"), text="<image>")
    assert base["input_ids"][0].count(processor.image_token_id) == 24 * 24


# -- trained and evaluated -----------------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path_factory, monkeypatch):
    """motion_qa draws its clips into a folder of the tests."""
    folder = tmp_path_factory.getbasetemp() / "clips"
    monkeypatch.setattr(dataset, "cache_root", lambda: folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


def run(base: Path, output: Path, **options):
    own = {name: value for name, value in QUICK.items() if not name.startswith("lora")}
    given = {**own, "base": str(base), "output": str(output), "activation_checkpointing": True, **options}
    return train(read_config({**given, "data": "motion_qa_mc:20"}))


def test_it_trains_all_weights_as_the_paper_and_lmms_eval_takes_the_result(assembled, clips, tmp_path):
    result = run(assembled["timm"], tmp_path / "trained", preset="paper_full", max_steps=20, learning_rate=3e-3)
    assert len(losses(result)) == 20
    assert losses(result)[-1] < 0.7 * losses(result)[0]
    model, _ = load(result.output)
    assert all(norm > 0.01 for norm in describe_dynimg(model).theta_norms.values())
    before, after = (load_file(folder / "model.safetensors") for folder in (assembled["timm"], result.output))
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert not [name for name in moved if "vision_tower" in name]
    assert {"multi_modal_projector.linear_1.weight", "language_model.lm_head.weight"} <= moved
    manager = TaskManager(include_path=tasks_path(), include_defaults=False, model_name="llava_dynimg")
    results = simple_evaluate(
        model="llava_dynimg",
        model_args=f"pretrained={result.output},device=cpu,max_new_tokens=4",
        tasks=["motion_qa"],
        task_manager=manager,
        limit=3,
    )
    assert results["samples"]["motion_qa_mc"][0]["token_counts"][0]["input_tokens"] > 144
    assert 0 <= results["results"]["motion_qa_mc"]["accuracy,none"] <= 100


def test_the_projector_learns_alone_then_pllavas_lora_goes_on(assembled, clips, tmp_path):
    first = {"preset": "paper_full", "train_parts": ["projector", "theta"]}
    aligned = run(assembled["hf"], tmp_path / "aligned", max_steps=2, **first).output
    before, after = (load_file(folder / "model.safetensors") for folder in (assembled["hf"], aligned))
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name.split(".")[0] for name in moved} == {"multi_modal_projector"}
    adapter = run(aligned, tmp_path / "adapter", preset="pllava_lora", max_steps=2).output
    model, _ = load(aligned, adapter)
    assert all(norm > 0 for norm in describe_dynimg(model).theta_norms.values())


# -- real sizes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vision", ["timm:vit_so400m_patch14_siglip_384", "hf:google/siglip-so400m-patch14-384"])
def test_the_papers_sizes_are_counted_without_weights(vision, tmp_path):
    language = write_config(tmp_path / "qwen", **QWEN)
    code, out = dynimg("--vision", vision, "--language", language, "--dry-run")
    assert code == 0
    layer = 4 * (1152 + 1) * 1152 + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
    tower = 26 * layer + 3 * 14 * 14 * 1152 + 1152 + 27 * 27 * 1152
    tower += 2 * 1152 * vision.startswith("hf")  # transformers keeps the norm after the last layer, which LLaVA skips
    counts = [tower, (1152 + 1) * 3584 + (3584 + 1) * 3584, 7_615_616_512, 3 * 64]
    rows = out.splitlines()
    assert [int(line[15:30].replace(",", "")) for line in rows] == [*counts, sum(counts)]
    assert [line[:15].strip() for line in rows] == ["vision tower", "projector", "language model", "theta", "all"]
    assert "26 of 27 layers, 1152 wide, 27 x 27 patches of 14 px" in rows[0]
    assert "pooled to 12 x 12, 576 tokens per video" in rows[1]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "qwen"]


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vision", "sentence"),
    [
        ("google/siglip-so400m-patch14-384", r"is not known; allowed: timm:NAME .*hf:ID_OR_FOLDER"),
        ("open_clip:ViT-L", "'open_clip:ViT-L' is not known"),
        ("hf:", "'hf:' is not known"),
        ("timm:vit_nonsense", "vit_nonsense.*allowed: timm:NAME"),
        ("timm:resnet18", "is a ResNet of timm; allowed: a plain ViT"),
        ("timm:vit_base_patch32_clip_224", "7 x 7 patches, too few to pool to 12 x 12 cells"),
        ("hf:{language}", "is a qwen2, .*allowed: a SigLIP or CLIP"),
        ("hf:{language}/nothing", "no folder with a config.json"),
        ("timm:local-dir:{language}/nothing", "onfig"),
    ],
)
def test_a_tower_that_does_not_fit_is_refused_before_anything_is_written(parts, vision, sentence, tmp_path):
    language = parts / "language"
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        dynimg("--vision", vision.format(language=language), "--language", language, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model_type", ["gpt2", "gemma2", "llava"])
def test_a_language_model_of_another_class_is_refused(sources, model_type, tmp_path):
    language = write_config(tmp_path / "other", model_type=model_type)
    with pytest.raises(ValueError, match=f"is a {model_type}.*allowed: llama, mistral, qwen2, qwen3"):
        count_parts(sources["hf"], str(language))


def test_what_is_missing_is_named(parts, sources, tmp_path):
    language = tmp_path / "language"
    write_language(language)
    with pytest.raises(ValueError, match="has 3 layers, none of them -4; allowed: -3 to -1"):
        count_parts(sources["timm"], str(language), layer=-4)
    (language / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template; give the instruct version"):
        assemble(sources["hf"], str(language), tmp_path / "out")
    write_siglip(tmp_path / "siglip")
    file = tmp_path / "siglip/model.safetensors"
    save_file({n: v for n, v in load_file(file).items() if "layers.1.mlp.fc1" not in n}, file)
    with pytest.raises(ValueError, match=r"siglip lacks weights.*layers\.1\.mlp\.fc1"):
        assemble(f"hf:{tmp_path / 'siglip'}", str(parts / "language"), tmp_path / "out")
    weights = load_file(parts / "vit/model.safetensors")
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit/config.json").write_text((parts / "vit/config.json").read_text("utf-8"), "utf-8")
    save_file({n: v for n, v in weights.items() if "blocks.0.attn" not in n}, tmp_path / "vit/model.safetensors")
    with pytest.raises(ValueError, match=r"Missing key.*blocks\.0\.attn"):
        assemble(f"timm:local-dir:{tmp_path / 'vit'}", str(parts / "language"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_output_must_be_new_and_the_options_known(parts, sources, tmp_path):
    (tmp_path / "something").touch()
    arguments = ("--vision", sources["hf"], "--language", parts / "language")
    with pytest.raises(ValueError, match="is not empty; give a new folder"):
        dynimg(*arguments, "-o", tmp_path)
    with pytest.raises(ValueError, match="-o FOLDER is missing"):
        dynimg(*arguments)
    with pytest.raises(ValueError, match="--dtype int8 is not known; allowed: auto, bfloat16"):
        dynimg(*arguments, "-o", tmp_path / "new", "--dtype", "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["something"]


def test_without_timm_the_message_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install timm"):
        import_timm()


def test_the_checkpoint_names_no_folder_of_this_machine(parts, assembled):
    for folder in assembled.values():
        assert str(parts) not in json.dumps([path.read_text("utf-8") for path in folder.glob("*.json")])
