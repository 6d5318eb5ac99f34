"""`dynimg judge` and `dynimg report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def judge(
    samples: Annotated[list[Path], typer.Argument(help="*_samples_<task>.jsonl files, or folders of results")],
    judge_url: Annotated[str, typer.Option(help="OpenAI-compatible server: http://host:8000/v1")],
    judge_model: Annotated[str, typer.Option(help="the judge's name on that server")],
    api_key: Annotated[str | None, typer.Option(help="by default the environment's OPENAI_API_KEY")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="folder of the judge's replies, by default that of `dynimg eval`; new: all anew")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="requests under way at a time", min=1)] = 8,
    timeout: Annotated[float, typer.Option(help="seconds for one attempt")] = 60.0,
    retries: Annotated[int, typer.Option(help="further attempts at a request", min=0)] = 3,
    max_tokens: Annotated[int, typer.Option(help="length of a reply; judges that think first need room", min=1)] = 1024,
) -> None:
    """Judge saved answers, or judge them again with another judge; started again, it asks only for what is missing."""
    from dynimg_plugin.evaluation.current import judge_cache
    from dynimg_plugin.evaluation.judging import Judge
    from dynimg_plugin.evaluation.judging.saved import find_samples, judge_saved
    from dynimg_plugin.evaluation.reporting import judged_lines

    found = find_samples(samples)
    one = Judge(judge_url, judge_model, api_key, cache or judge_cache(), concurrency, timeout, retries, max_tokens)
    judgements = []
    for path in found:
        before = one.asked
        judgements.append(judge_saved(path, one))
        typer.echo("\n".join(judged_lines(path, judgements[-1], one.asked - before)))
    for judgement in judgements:
        if judgement is not None:
            judgement.summary.check()


def report(
    folders: Annotated[list[Path], typer.Argument(help="folders of results; each run becomes a column")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="markdown file to write as well")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write every number")] = None,
    all_metrics: Annotated[bool, typer.Option("--all", help="every task of MVBench too")] = False,
) -> None:
    """Put runs side by side, with the paper's figures in columns of their own."""
    import json

    from dynimg_plugin.evaluation.reporting import collect, render

    runs = collect(folders)
    text = render(runs, all_metrics=all_metrics)
    typer.echo(text)
    for path, content in (
        (output, text),
        (json_file, json.dumps([run.to_dict() for run in runs], indent=2, ensure_ascii=False)),
    ):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n", "utf-8")
            typer.echo(f"report -> {path}")
