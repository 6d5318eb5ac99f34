"""`dynimg eval` and `dynimg check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dynimg_plugin.cli_options import Adapter, LoraAlpha, Model, Options, pairs

Tasks = Annotated[str, typer.Option(help="lmms-eval tasks, separated by commas, e.g. dynimg_paper")]
Data = Annotated[Path | None, typer.Option("--data", help="folder that holds the benchmarks of the paper")]
Prompts = Annotated[str | None, typer.Option(help="pllava | lmms-eval, instead of what the tasks' YAMLs name")]
JudgeUrl = Annotated[str | None, typer.Option(help="OpenAI-compatible server: http://host:8000/v1")]
JudgeModel = Annotated[str | None, typer.Option(help="the judge's name on that server")]
Output = Annotated[Path, typer.Option(help="folder for results and answers")]


def evaluate(
    model: Model,
    tasks: Tasks,
    adapter: Adapter = None,
    option: Options = None,
    data: Data = None,
    prompts: Prompts = None,
    judge_url: JudgeUrl = None,
    judge_model: JudgeModel = None,
    predict_only: Annotated[bool, typer.Option("--predict-only", help="answer now, judge later")] = False,
    resume: Annotated[bool, typer.Option(help="take answers of an earlier run into the same folder")] = True,
    limit: Annotated[int | None, typer.Option(help="questions per task at most", min=1)] = None,
    output_path: Output = Path("results"),
    batch_size: Annotated[int, typer.Option(help="questions answered together", min=1)] = 1,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default CUDA where there is one")] = None,
    lora_alpha: LoraAlpha = None,
) -> None:
    """Run lmms-eval tasks as `lmms-eval --model llava_dynimg` does; checks first, resumes, has a true exit code."""
    from dynimg_plugin.check import must_work
    from dynimg_plugin.evaluation.run import run_lmms_eval
    from dynimg_plugin.loading import check_checkpoint, stored_config

    check_checkpoint(model)
    options = pairs(option or [])
    stored_config(model, adapter).with_options(options)
    settings = {"data_root": data, "prompts": prompts, "judge_url": judge_url, "judge_model": judge_model}
    must_work(tasks.split(","), _settings(settings), judging=not predict_only)
    answers = output_path / "answers" if resume else None
    names = {"pretrained": model, "adapter": adapter, "lora_alpha": lora_alpha, "device": device, "answers": answers}
    arguments = {**names, **settings, **options}
    results = run_lmms_eval(
        arguments, tasks, output_path, limit=limit, batch_size=batch_size, predict_only=predict_only
    )
    typer.echo(f"results -> {results}")


def check(
    tasks: Tasks,
    data: Data = None,
    prompts: Prompts = None,
    model: Annotated[str | None, typer.Option(help="hub id or folder of a checkpoint")] = None,
    adapter: Adapter = None,
    option: Options = None,
    judge_url: JudgeUrl = None,
    judge_model: JudgeModel = None,
    output_path: Output = Path("results"),
    missing: Annotated[Path, typer.Option(help="file that gets the paths of missing videos")] = Path(
        "missing_videos.txt"
    ),
) -> None:
    """Look at everything that an evaluation needs, before any weight is loaded; exit code 1 when something is amiss."""
    from dynimg_plugin.check import check as examine

    settings = {"data_root": data, "prompts": prompts, "judge_url": judge_url, "judge_model": judge_model}
    broken = 0
    for finding in examine(
        tasks.split(","),
        _settings(settings),
        model=model,
        adapter=adapter,
        options=pairs(option or []),
        output=output_path,
        missing_file=missing,
    ):
        typer.echo(finding)
        broken += bool(finding.fix)
    if broken:
        raise typer.Exit(1)


def _settings(given: dict[str, Any]) -> Any:
    from dynimg_plugin.evaluation.current import Settings

    words: dict[str, Any] = {name: str(value) for name, value in given.items() if value is not None}
    return Settings(**words)
