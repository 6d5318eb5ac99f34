"""The benchmarks whose annotations lmms-eval keeps on the hub, with the videos where lmms-eval unpacks them.

Nothing is downloaded but annotations: videos are tens of gigabytes, and lmms-eval's own task of the same benchmark
fetches and unpacks them into HF_HOME.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME


def hub_rows(hub: dict[str, str] | None, name: str, split: str, config: str | None = None) -> list[dict[str, Any]]:
    """The annotations of a repository, e.g. {"repository": "lmms-eval/ActivityNetQA", "folder": "activitynetqa"}.

    A folder of the repository's name below the working directory is read in its place.

    Raises:
        ValueError: the benchmark has no repository.
        FileNotFoundError: it cannot be had.
    """
    if hub is None:
        raise ValueError(
            f"{name}: lmms-eval has no hub repository of this benchmark; give the folder that holds it: data_root=... "
            "among the model arguments, or dynimg eval --data ..."
        )
    from datasets import load_dataset  # a second of import that local data does not need

    repository = hub["repository"]
    try:
        dataset = load_dataset(repository, config, split=split, revision=hub.get("revision"))
    except (OSError, ValueError) as error:  # no network, no such repository, configuration or split
        raise FileNotFoundError(
            f"{name}: {repository} could not be loaded ({error}); give data_root=..., or make it reachable"
        ) from error
    return [dict(row) for row in dataset]


def hub_folder(hub: dict[str, str] | None, name: str) -> Path:
    """Where lmms-eval unpacks the videos.

    Raises:
        FileNotFoundError: there is no such folder yet, with what makes it.
    """
    folder = Path(HF_HOME) / (hub or {"folder": ""})["folder"]
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{name}: no videos in {folder}; run lmms-eval's own task of this benchmark once, which unpacks them "
            "there, or give data_root=..."
        )
    return folder
