"""The `dynimg` command. Heavy imports happen inside each command, so that --help stays instant."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from dynimg_plugin import __version__
from dynimg_plugin.cli_assembling import assemble
from dynimg_plugin.cli_evaluation import check, evaluate
from dynimg_plugin.cli_judging import judge, report
from dynimg_plugin.cli_options import Adapter, Model, Options, new_folder, pairs
from dynimg_plugin.cli_training import convert, merge, train

app = typer.Typer(
    help="DynImg: temporal prompts and learnable 4D RoPE for video language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command(name="eval")(evaluate)
for command in (check, judge, report, train, merge, convert, assemble):
    app.command()(command)

DEBUG = {"on": False}
Video = Annotated[Path, typer.Argument(help="video file, or a folder of pictures")]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="print the version", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of what went wrong")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
    DEBUG["on"] = debug


@app.command()
def compose(
    video: Video,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write")] = Path("dynimgs.png"),
    annotate: Annotated[bool, typer.Option("--annotate", help="twice the size, with slots, times and borders")] = False,
    grid: Annotated[bool, typer.Option("--grid", help="draw the lines of the patch grid")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="write every frame's role, time and place")] = None,
    sampling: Annotated[str, typer.Option(help="auto | iframe | uniform | motion")] = "auto",
    start: Annotated[float | None, typer.Option(help="first second of the video to look at")] = None,
    end: Annotated[float | None, typer.Option(help="last second of the video to look at")] = None,
    num_images: Annotated[int, typer.Option(help="DynImgs per video")] = 4,
    num_prompts: Annotated[int, typer.Option(help="prompt frames per DynImg: 1, 2, 3, 4, 6 or 12")] = 4,
    fusion: Annotated[str, typer.Option(help="canvas | tokens | after | none")] = "canvas",
    aspect: Annotated[str, typer.Option(help="stretch | auto | keep")] = "stretch",
    tower_grid: Annotated[int, typer.Option(help="patch rows of the vision tower: 27, 24, 28, ...")] = 27,
    patch_size: Annotated[int, typer.Option(help="pixels of a patch's side")] = 14,
    seed: Annotated[int | None, typer.Option(help="draw prompt frames at random, as in training")] = None,
) -> None:
    """Compose a video's DynImgs and write them to a PNG."""
    from dynimg_plugin.composition import compose as compose_video
    from dynimg_plugin.config import DynImgConfig
    from dynimg_plugin.preview import sheet
    from dynimg_plugin.video import Clip

    config = DynImgConfig.from_dict(
        {
            "sampling": sampling,
            "num_images": num_images,
            "num_prompts": num_prompts,
            "fusion": fusion,
            "aspect": aspect,
            "grid": tower_grid,
            "patch_size": patch_size,
        }
    )
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"--output {output} is no picture's name; end it in .png")
    dynimgs = compose_video(Clip(video, start, end), config, seed=seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet(dynimgs, annotate=annotate, patch_size=patch_size if grid else None).save(output)
    record = dynimgs[0].record
    at_least = "more than " if record["index"] == "sparse" else ""
    typer.echo(
        f"{len(dynimgs)} DynImgs of {record['unique_frames']} different frames, {record['iframes_used']} of them "
        f"I-frames ({at_least}{record['iframes_in_video']} in the video) -> {output}"
    )
    if json_file is not None:
        content = {"config": config.to_dict(), "dynimgs": [dynimg.to_dict() for dynimg in dynimgs]}
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        typer.echo(f"frames -> {json_file}")


@app.command()
def ask(
    video: Video,
    question: Annotated[str, typer.Argument(help="what to ask about the video")],
    model: Model,
    adapter: Adapter = None,
    option: Options = None,
    max_new_tokens: Annotated[int, typer.Option(help="length of the answer at most")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default CUDA where there is one")] = None,
) -> None:
    """Ask a checkpoint about a video."""
    import torch

    from dynimg_plugin.loading import load, stored_config

    config = None
    if option:
        config = stored_config(model, adapter).with_options(pairs(option))
    if not video.exists():
        raise FileNotFoundError(f"{video}: no such file")
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: this torch sees no CUDA device; leave --device out")
    loaded, processor = load(model, adapter, config)
    loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    inputs = processor(text=question, videos=[video], return_tensors="pt").to(loaded.device)
    with torch.inference_mode():
        ids = loaded.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    typer.echo(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip())


@app.command()
def families() -> None:
    """List the model families that can be patched: where DynImgs enter, their tokens, the rotary embedding."""
    from dynimg_plugin.family_table import family_rows

    typer.echo(f"{'family':<17} {'enter at':<25} {'tokens per DynImg':<30} {'rotary embedding':<20} source")
    for row in family_rows():
        typer.echo(f"{row.family:<17} {row.entry:<25} {row.tokens:<30} {row.rope:<20} {row.source}")


@app.command()
def suggest(
    model: Annotated[str, typer.Argument(help="hub id or folder of a checkpoint that no family file describes")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="file for the Patch")] = None,
) -> None:
    """Find the Patch of an unknown vision language model by trying known ways on it, and print it as a file."""
    from dynimg_plugin.suggest import suggest_for

    suggestion = suggest_for(model)
    if output is None:
        typer.echo(str(suggestion))
        return
    output.write_text(str(suggestion), "utf-8")
    typer.echo(f"{suggestion.model} read as {suggestion.alike} -> {output}; give apply_dynimg() its PATCH")


@app.command()
def tiny(
    output: Annotated[Path, typer.Argument(help="folder to write")],
    family: Annotated[str, typer.Option(help="model family, see `dynimg families`")] = "llava_onevision",
    seed: Annotated[int, typer.Option(help="seed of the weights")] = 0,
) -> None:
    """Write a complete random tiny checkpoint, for trying things out offline."""
    from dynimg_plugin.tiny import write_tiny

    folder = write_tiny(family, new_folder(output), seed=seed)
    size = sum(path.stat().st_size for path in folder.iterdir())
    typer.echo(f"random {family} checkpoint, {size / 1e6:.1f} MB -> {folder}")


@app.command(name="build-ext")
def build_ext(
    build: Annotated[str, typer.Option(help="auto | cuda (with CPU) | cpu | none")] = "auto",
) -> None:
    """Compile the native 4D RoPE operator for the torch that is installed; needed again after torch is upgraded."""
    from dynimg_plugin.ops.build import build_in_place

    report = build_in_place(build)
    typer.echo(f"built: {report['built']} (torch {report['torch']})")
    for reason in report["why"]:
        typer.echo(f"  {reason}")


@app.command()
def doctor() -> None:
    """Check the installation; each finding comes with the line that mends it."""
    from dynimg_plugin.doctor import examine

    broken = 0
    for finding in examine():
        typer.echo(finding)
        broken += bool(finding.fix)
    if broken:
        raise typer.Exit(1)


@app.command()
def demo(
    video: Annotated[Path | None, typer.Argument(help="your own video; without it a clip is drawn")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for everything that the demo makes")] = Path(
        "demo_out"
    ),
    limit: Annotated[int | None, typer.Option(help="held-out questions at most; by default all 240", min=1)] = None,
) -> None:
    """Compose a clip's DynImgs, ask the small models that ship about it, print their accuracies side by side."""
    from dynimg_plugin.demo import run

    run(video, output, limit)


def main() -> None:
    """Entry point: what a user can mend becomes one sentence and exit code 2; anything else keeps its traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        if DEBUG["on"]:
            raise
        typer.echo(f"dynimg: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":  # accelerate launch -m dynimg_plugin.cli train ..., torchrun -m ... likewise
    main()
