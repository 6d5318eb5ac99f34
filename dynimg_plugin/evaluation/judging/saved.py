"""Judge answers that lmms-eval saved, and keep what came out beside them: one judgement per file and judge."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from dynimg_plugin.evaluation.disk import write
from dynimg_plugin.evaluation.judging.cache import file_name
from dynimg_plugin.evaluation.judging.judge import Judge
from dynimg_plugin.evaluation.judging.protocols import JudgeRequest
from dynimg_plugin.evaluation.judging.reading import Verdict
from dynimg_plugin.evaluation.judging.scores import Summary, summarise
from dynimg_plugin.evaluation.samples import KEY, Sample, read_samples

FORMAT_VERSION = 1
JUDGEMENT, VERDICTS = ".judgement.json", ".verdicts.jsonl"


@dataclass(frozen=True)
class Judgement:
    """What one judge made of one sample file.

    Attributes:
        task: the lmms-eval task, as the file's name tells.
        samples: the file's name.
        judge: Judge.identity.
        summary: the numbers.
    """

    task: str
    samples: str
    judge: dict[str, Any]
    summary: Summary

    def save(self, path: Path) -> Path:
        """Write as JSON."""
        return write(path, json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2, ensure_ascii=False))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a judgement.

        Raises:
            ValueError: none, or one of another format.
        """
        try:
            values = json.loads(path.read_text("utf-8"))
            version = values.pop("format_version", None)
            if version != FORMAT_VERSION:
                raise ValueError(f"format_version is {version}, this release reads {FORMAT_VERSION}")
            return cls(**{**values, "summary": Summary(**values["summary"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no judgement ({error}); run dynimg judge again") from error


def requests_of(samples: Iterable[Sample]) -> list[JudgeRequest]:
    """What there is to judge, in order; nothing of videos that could not be read and of multiple choice.

    Raises:
        ValueError: a request whose fields are not those of JudgeRequest.
    """
    try:
        return [JudgeRequest(**request) for sample in samples for request in sample.requests]
    except TypeError as error:
        raise ValueError(f"an answer's request to the judge does not fit this release ({error})") from error


def find_samples(paths: Iterable[Path]) -> list[Path]:
    """The sample files among files and under folders; of folders only those of the six benchmarks.

    Raises:
        FileNotFoundError: a path that is not there, or no sample file at all.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        found += sorted(filter(_ours, path.rglob("*_samples_*.jsonl"))) if path.is_dir() else [path]
    if not found:
        raise FileNotFoundError(
            "no *_samples_<task>.jsonl of the six benchmarks; evaluate them with --log_samples first "
            "(motion_qa needs no judge)"
        )
    return list(dict.fromkeys(found))


def _ours(path: Path) -> bool:
    with path.open(encoding="utf-8") as lines:
        return not path.name.endswith(VERDICTS) and f'"{KEY}": {{' in lines.readline()


def judge_saved(path: Path, judge: Judge) -> Judgement | None:
    """Judge a sample file; None where it holds nothing to judge.

    Beside it come `<name>.<judge>.judgement.json` and, one line per request, `<name>.<judge>.verdicts.jsonl`.

    Raises:
        ValueError: a line that is no sample.
    """
    requests = requests_of(read_samples(path))
    if not requests:
        return None
    verdicts = judge.verdicts(requests)
    task = path.stem.partition("_samples_")[2] or path.stem
    judgement = Judgement(task, path.name, judge.identity, summarise(requests, verdicts))
    write(beside(path, judge.model, VERDICTS), "\n".join(map(_line, requests, verdicts)))
    judgement.save(beside(path, judge.model, JUDGEMENT))
    return judgement


def beside(samples: Path, model: str, ending: str) -> Path:
    """Where what a judge made of a sample file is kept."""
    return samples.with_name(f"{samples.stem}.{file_name(model)}{ending}")


def find_judgements(folder: Path, samples: Sequence[str]) -> list[Judgement]:
    """The judgements in a folder on sample files of these names."""
    found = [Judgement.load(path) for path in sorted(folder.glob(f"*{JUDGEMENT}"))]
    return [judgement for judgement in found if judgement.samples in samples]


def _line(request: JudgeRequest, verdict: Verdict) -> str:
    return json.dumps({**request.to_dict(), **asdict(verdict)}, ensure_ascii=False)
