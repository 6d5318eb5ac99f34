"""`dynimg assemble`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynimg_plugin.cli_options import Options, new_folder, pairs


def assemble(
    vision: Annotated[
        str,
        typer.Option(
            help="timm:vit_so400m_patch14_siglip_384 | timm:local-dir:FOLDER | hf:ID_OR_FOLDER (SigLIP, CLIP)"
        ),
    ],
    language: Annotated[str, typer.Option(help="hub id or folder, e.g. Qwen/Qwen2.5-7B-Instruct")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder to write")] = None,
    seed: Annotated[int, typer.Option(help="seed of the projector's weights")] = 0,
    dtype: Annotated[str, typer.Option(help="auto (the language model's) | bfloat16 | float16 | float32")] = "auto",
    layer: Annotated[int, typer.Option(help="layer of the tower that is read, from the end; the rest is cut off")] = -2,
    option: Options = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only count the parameters; configs are read, weights are not")
    ] = False,
) -> None:
    """Make the paper's own model from parts: vision tower, fresh MLP projector, language model -> LLaVA checkpoint."""
    from dynimg_plugin.assembling import assemble as run
    from dynimg_plugin.assembling import count_parts
    from dynimg_plugin.config import DynImgConfig

    if dtype not in (allowed := ("auto", "bfloat16", "float16", "float32")):
        raise ValueError(f"--dtype {dtype} is not known; allowed: {', '.join(allowed)}")
    config = DynImgConfig.from_dict(pairs(option or []))
    if dry_run:
        typer.echo(count_parts(vision, language, layer=layer, config=config))
        return
    if output is None:
        raise ValueError("-o FOLDER is missing; give a new folder, or --dry-run to count parameters only")
    typer.echo(run(vision, language, new_folder(output), seed=seed, dtype=dtype, layer=layer, config=config))
    typer.echo(f"its projector knows nothing yet: dynimg train paper_full base={output} ... -> {output}")
