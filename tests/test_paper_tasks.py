"""The six benchmarks of the paper as lmms-eval tasks, on miniatures of the layouts that people have."""

from __future__ import annotations

import pytest
from judge_server import JudgeServer
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from modelling import sharpen
from paper_data import EXPECTED, all_six, says_b

from dynimg_plugin.evaluation.manifest import tasks_path
from dynimg_plugin.evaluation.model import LlavaDynImg
from dynimg_plugin.evaluation.samples import Sample
from dynimg_plugin.tiny import write_tiny

ARGUMENTS = {"device": "cpu", "num_images": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return all_six(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return says_b(tmp_path_factory.mktemp("says_b"))


@pytest.fixture(scope="module")
def random_checkpoint(tmp_path_factory):
    return write_tiny("llava_onevision", tmp_path_factory.mktemp("random"))


def run(model, tasks, **arguments):
    manager = TaskManager(include_path=tasks_path(), include_defaults=False, model_name="llava_dynimg")
    return simple_evaluate(model=model, tasks=tasks.split(","), task_manager=manager, **arguments)


def scores(results, task):
    found = {key.partition(",")[0]: value for key, value in results["results"][task].items() if "_stderr" not in key}
    return {name: value for name, value in found.items() if name not in ("alias", "samples")}


def test_all_six_give_the_scores_counted_by_hand(root, checkpoint, tmp_path):
    with JudgeServer() as server:
        model = LlavaDynImg(
            str(checkpoint), data_root=str(root), judge_url=server.url, judge_model="loopback",
            judge_cache=str(tmp_path), **ARGUMENTS,
        )  # fmt: skip
        results = run(model, "dynimg_paper")
    assert set(EXPECTED) <= set(results["results"])
    for task, expected in EXPECTED.items():
        found = scores(results, task)
        assert {name: found[name] for name in expected} == pytest.approx(expected), task
