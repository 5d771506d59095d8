"""The plan: how many shards, decided once."""

from __future__ import annotations

import pytest
from video_pipeline.config import load_config
from video_pipeline.errors import UserError
from video_pipeline.run.sharding import (
    Sharding,
    check_job_gpus,
    job_threads,
    jobs_at_once,
    resolve_sharding,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / ".chunks" / "out" / "plan.json"


def auto(**vllm):
    return load_config({"vllm": vllm})


@pytest.mark.parametrize(
    ("gpus", "sizes", "shards"),
    [
        (None, {}, 1),
        (1, {}, 1),
        (8, {}, 8),
        (8, {"tensor_parallel_size": 2}, 4),
        (7, {"tensor_parallel_size": 2}, 3),
        (8, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 2),
    ],
)
def test_auto_divides_the_gpus(path, gpus, sizes, shards):
    assert resolve_sharding(auto(**sizes), path, gpus=gpus, is_main=True).num_shards == shards


def test_an_explicit_number_wins(path):
    config = load_config({"data": {"num_shards": 5}})
    Sharding(3).write(path)
    assert resolve_sharding(config, path, gpus=8, is_main=True).num_shards == 5
    assert resolve_sharding(config, path, gpus=None, is_main=True).num_shards == 5


def test_a_later_call_without_gpus_reads_the_plan(path):
    resolve_sharding(auto(), path, gpus=4, is_main=True).write(path)
    assert resolve_sharding(auto(), path, gpus=None, is_main=True).num_shards == 4
    assert resolve_sharding(auto(), path, gpus=2, is_main=True).num_shards == 2


def test_a_child_takes_the_plan_as_it_is(path):
    config = load_config({"data": {"resume": False}})
    plan = resolve_sharding(config, path, gpus=4, is_main=True)
    plan.write(path)
    assert resolve_sharding(config, path, gpus=None, is_main=False) == plan


def test_a_child_without_a_plan_still_answers(path):
    assert resolve_sharding(auto(), path, gpus=None, is_main=False).num_shards == 1


@pytest.mark.parametrize("gpus", [0, 1])
def test_too_few_gpus(path, gpus):
    with pytest.raises(UserError, match=rf"needs 2 GPUs .* was given gpu={gpus}"):
        resolve_sharding(auto(tensor_parallel_size=2), path, gpus=gpus, is_main=True)


def test_without_resume_every_invocation_names_a_journal_of_its_own(path):
    config = load_config({"data": {"resume": False}})
    first, second = (resolve_sharding(config, path, gpus=None, is_main=True) for _ in range(2))
    assert first.run_id
    assert first.run_id != second.run_id
    assert resolve_sharding(auto(), path, gpus=None, is_main=True).run_id == ""


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"shards": 2}', '{"num_shards": 0}', '{"num_shards": "x"}']
)
def test_a_broken_plan_is_named(path, text):
    Sharding(2).write(path)
    path.write_text(text)
    with pytest.raises(UserError, match=r"plan\.json"):
        resolve_sharding(auto(), path, gpus=None, is_main=True)


@pytest.mark.parametrize(
    ("num_shards", "gpus", "gpus_per_job", "cores", "at_once", "threads"),
    [
        (8, 8, 1, 64, 8, 8),
        (8, 2, 1, 64, 2, 32),  # four waves
        (8, 4, 2, 64, 2, 32),
        (2, 8, 1, 64, 2, 32),
        (3, 3, 1, 10, 3, 3),
        (2, 2, 1, 1, 2, 0),  # one core starts both all the same
        (4, None, 1, 64, 4, 16),
        (4, None, 1, 2, 4, 1),  # only cores bind
        (4, None, 1, None, 4, 1),  # a cluster
    ],
)
def test_cores_do_not_bind_before_gpus(num_shards, gpus, gpus_per_job, cores, at_once, threads):
    assert jobs_at_once(num_shards, gpus, gpus_per_job) == at_once
    assert job_threads(cores, at_once, gpus_bind=gpus is not None) == threads
    if gpus is not None:
        assert at_once * threads <= cores


@pytest.mark.parametrize("overwritten", [None, 2, "2"])
def test_gpus_of_a_job_as_they_are(overwritten):
    check_job_gpus(auto(tensor_parallel_size=2), overwritten)


@pytest.mark.parametrize("overwritten", [0, 1, 3, "attempt"])
def test_gpus_of_a_job_that_its_engine_does_not_take(overwritten):
    with pytest.raises(UserError, match=rf"infer:gpu={overwritten}: one inference job needs 2 GPU"):
        check_job_gpus(auto(tensor_parallel_size=2), overwritten)
