"""VideoTask: the lmms-eval task that our YAMLs name; rows come from a function, everything else is the same for all.

lmms-eval's own tasks try five times in silence when data is missing, lose the question with `--predict_only`, and judge
one answer at a time. Here data is looked for once, each sample keeps what a judge needs, and all answers are judged at
the end, together.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from lmms_eval.api.instance import Instance
from lmms_eval.api.task import ConfigurableMessagesTask

from dynimg_plugin.evaluation.current import current
from dynimg_plugin.evaluation.prompts import Prompt, find_prompt
from dynimg_plugin.evaluation.recording import write_records
from dynimg_plugin.evaluation.rows import Row
from dynimg_plugin.evaluation.scoring import TaskScores
from dynimg_plugin.evaluation.task_files import missing_videos

logger = logging.getLogger(__name__)


class VideoTask(ConfigurableMessagesTask):
    """Questions about videos, for any chat model of lmms-eval.

    A YAML gives, beside lmms-eval's own keys:

        rows: !function to (root, split, **dataset_kwargs) -> list[Row]; `root` is the model argument data_root, else
            dataset_kwargs.data_root, else None: the hub.
        metadata: `prompts` (a variant of prompts.PROMPTS; the model argument of that name wins), `scoring` (open,
            aspects or choice) and `expected`, the number of questions of the whole split.

    Raises:
        FileNotFoundError, ValueError: what is missing from the data, and where it was looked for.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        cache_dir: str | None = None,
        download_mode: Any = None,
        config: dict[str, Any] | None = None,
        model_name: str | None = None,
    ) -> None:
        own = {name: value for name, value in (config or {}).items() if name not in ("class", "rows")}
        self._read_rows: Callable[..., list[Row]] = (config or {})["rows"]
        self.evaluation = current()
        self.variant: str = self.evaluation.settings.prompts or own["metadata"]["prompts"]
        super().__init__(data_dir, cache_dir, download_mode, own, model_name)
        self._prepare_metric_and_aggregation()
        write_records()

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Read the rows; videos are looked for, not opened."""
        name, split, options = self.config.task, self.config.test_split, dict(dataset_kwargs or {})
        in_yaml = options.pop("data_root", None)
        root = self.evaluation.settings.data_root or in_yaml
        self.rows = self._read_rows(Path(root) if root else None, split, **options)
        if not self.rows:
            raise ValueError(f"{name}: no question in {root or 'the hub repository'}")
        self.dataset = DatasetDict({split: Dataset.from_list([asdict(row) for row in self.rows])})
        self.dataset_no_image = self.dataset
        self.config.generation_kwargs.setdefault("max_new_tokens", self.prompt(self.rows[0]).max_new_tokens)
        self.config.task_alias = f"{name} ({split}, {len(self.rows)} questions, {self.variant} prompts)"
        self.evaluation.tasks[name] = {
            "split": split,
            "expected": self.config.metadata.get("expected"),
            "prompts": self.variant,
            "source": str(root or options["hub"]["repository"]),
        }
        missing = missing_videos(self.rows)
        if missing:
            text = "%s: videos missing: %d, the first is %s; questions about them will not be scored"
            logger.warning(text, name, len(missing), missing[0])

    def prompt(self, row: Row) -> Prompt:
        """How this row's question is put."""
        return find_prompt(self.variant, row)

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        row = Row(**doc)
        return self.prompt(row).question(row)

    def doc_to_messages(self, doc: dict[str, Any], *, wording: int = 0, **rounds: Any) -> list[dict[str, Any]]:
        row = Row(**doc)
        return self.prompt(row).messages(row, wording)

    def construct_requests(self, doc_id: int, ctx: str, **kwargs: Any) -> list[Instance]:
        """One request per wording of the question."""
        task, split, row = self.config.task, kwargs["metadata"]["split"], self.rows[doc_id]
        generation = self.config.generation_kwargs
        return [
            Instance(
                request_type=self.OUTPUT_TYPE,
                arguments=(
                    ctx if wording == 0 else self.prompt(row).question(row, wording),
                    partial(self.doc_to_messages, wording=wording),
                    copy.deepcopy(generation),
                    doc_id,
                    task,
                    split,
                ),
                idx=wording,
                task_name=task,
                doc_id=doc_id,
                **kwargs,
            )
            for wording in range(len(row.questions))
        ]

    def process_results(self, doc: dict[str, Any], results: Sequence[Any], full_docs: Any = None) -> dict[str, Any]:
        """A sample's value for every metric."""
        return self.scores.values(Row(**doc).sample([str(reply or "").strip() for reply in results]))

    def _prepare_metric_and_aggregation(self) -> None:
        """The metrics of the YAML's scoring; called before the rows are known, and again when they are."""
        rows: list[Row] = getattr(self, "rows", [])
        categories = list(dict.fromkeys(row.category for row in rows if row.category))
        paths = {row.video_name: row.video for row in rows}
        self.scores = TaskScores(self.config.task, self.config.metadata["scoring"], categories, paths, self.evaluation)
        self._aggregation_list = self.scores.aggregations
        self._higher_is_better = {name: name != "judge_failed" for name in self._aggregation_list}
        self._metric_fn_list: dict[str, Any] = dict.fromkeys(self._aggregation_list)
        self._metric_fn_kwargs: dict[str, Any] = {name: {} for name in self._aggregation_list}

    def override_metric(self, metric_name: str) -> None:
        """lmms-eval's --predict_only: nothing is judged. What needs no judge costs nothing and stays."""
        self.scores.judging = False
