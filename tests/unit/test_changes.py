"""What a journal stands for, and what is said when something else is asked."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from helpers import Splitter, keys, samples
from video_pipeline.estimate.estimate import make_plan
from video_pipeline.infer.infer import infer
from video_pipeline.output.consolidation import consolidate
from video_pipeline.run.changes import JournalSettings
from video_pipeline.run.layout import Layout
from video_pipeline.run.origin import output_is_of_earlier_run, what_changed, what_stays

DESCRIBE = {"task": "describe", "max_error_rate": 1.0}  # no file of a sample is there


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said about changes."""
    return [r.getMessage() for r in caplog.records if "changed since" in r.getMessage()]


def settings_files(splitting: Splitter) -> dict[str, Any]:
    """The content of each settings.json, by the name of its journal."""
    found = splitting.layout.journal.glob("*/settings.json")
    return {path.parent.name: json.loads(path.read_text()) for path in found}


def test_settings_json_says_what_a_journal_stands_for(splitting: Splitter) -> None:
    splitting.run.configure(sampling={"max_tokens": 7}, task_params={"prompt": "Why?"})
    manifest = splitting(samples(2)).manifest
    ((name, written),) = settings_files(splitting).items()
    assert manifest.journal.endswith(name)
    assert written["version"] == 1
    assert written["fingerprint"]["sampling.max_tokens"] == 7
    assert written["fingerprint"]["run.engine"] == "simulated"
    assert written["fingerprint"].keys() >= {"dataset", "dataset_version", "reader_version"}
    assert "sampling.temperature" not in written["fingerprint"]
    assert written["asked"]["task"] == "ask"
    assert written["asked"]["task_params.prompt"] == "Why?"


def test_a_setting_that_changed_is_named_with_what_it_costs(
    splitting: Splitter, caplog: pytest.LogCaptureFixture
) -> None:
    splitting(samples(4)).finish("0", "1", "2")
    assert not said(caplog)
    splitting.run.configure(sampling={"max_tokens": 13})
    splitting()
    assert said(caplog) == [
        "changed since the last split: sampling.max_tokens (512 -> 13): 4 of 4 samples will be "
        "inferred; 3 answers stay under the old settings"
    ]
    assert len(settings_files(splitting)) == 2


def test_nothing_is_said_where_nothing_is_inferred_again(
    splitting: Splitter, caplog: pytest.LogCaptureFixture
) -> None:
    splitting(samples(2)).finish(*keys(2))
    splitting.run.configure(sampling={"max_tokens": 13})
    splitting().finish(*keys(2))
    caplog.clear()
    splitting.run.configure(sampling={"max_tokens": 512})
    splitting()  # back to what was there
    splitting.run.configure(run={"max_error_rate": 0.5})
    splitting(samples(3))  # a line more
    assert not said(caplog)
    assert len(splitting.pending) == 1


def test_a_prompt_that_changed_is_named(
    splitting: Splitter, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no part of the fingerprint: the journal is the same."""
    splitting.run.configure(run=DESCRIBE, task_params={"prompt": "Why?"})
    splitting(samples(3)).finish(*keys(3))
    splitting.run.configure(task_params={"prompt": "What?"})
    splitting()
    assert said(caplog) == [
        'changed since the last split: task_params.prompt ("Why?" -> "What?"): 3 of 3 samples will '
        "be inferred; 3 answers stay under the old settings"
    ]
    assert len(settings_files(splitting)) == 1


def test_a_prompt_file_and_a_longer_input(
    splitting: Splitter, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = splitting.run.folder / "prompt.txt"
    prompt.write_text("Why?")
    splitting.run.configure(run=DESCRIBE, task_params={"prompt_file": "prompt.txt"})
    splitting(samples(2)).finish(*keys(2))
    prompt.write_text("What?")
    splitting(samples(3))
    (message,) = said(caplog)
    assert "prompt.txt: 3 of 3 samples will be inferred (the input has changed, too)" in message


def test_weights_that_changed_are_named(
    splitting: Splitter, caplog: pytest.LogCaptureFixture
) -> None:
    model = splitting.run.folder / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_text(name)
    splitting.run.configure(run={"engine": "vllm"}, vllm={"model": "model"})
    splitting(samples(2)).finish("0")
    (model / "model.safetensors").write_text("trained further")
    splitting()
    (message,) = said(caplog)
    assert "changed since the last split: vllm.model (model.safetensors): 2 of 2" in message
    assert "; 1 answers stay" in message


def test_a_long_value_is_not_repeated(
    splitting: Splitter, caplog: pytest.LogCaptureFixture
) -> None:
    splitting.run.configure(run=DESCRIBE, task_params={"prompt": "Why? " * 20})
    splitting(samples(1)).finish("0")
    splitting.run.configure(task_params={"prompt": "What? " * 20})
    splitting()
    assert "last split: task_params.prompt: 1 of 1" in said(caplog)[0]


def test_without_resume_nothing_is_compared(
    splitting: Splitter, caplog: pytest.LogCaptureFixture
) -> None:
    splitting(samples(1), run_id="one").finish("0")
    splitting.run.configure(sampling={"max_tokens": 13})
    splitting(run_id="two")
    splitting()
    assert not said(caplog)
    assert "are not used" not in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1, "fingerprint": {}}'])
def test_a_damaged_settings_json_stops_nothing(splitting: Splitter, text: str) -> None:
    splitting(samples(1)).finish("0")
    (path,) = splitting.layout.journal.glob("*/settings.json")
    path.write_text(text)
    assert JournalSettings.last(splitting.layout) is None
    assert splitting().pending == []
    assert JournalSettings.last(splitting.layout) is not None


def test_answers_of_unknown_settings_are_told(
    splitting: Splitter, caplog: pytest.LogCaptureFixture
) -> None:
    """An early version left a journal without a settings.json, under another fingerprint."""
    splitting(samples(3)).finish("0", "1")
    (path,) = splitting.layout.journal.glob("*/settings.json")
    path.unlink()
    splitting()  # the same fingerprint: they are used
    (path,) = splitting.layout.journal.glob("*/settings.json")
    path.unlink()
    assert "are not used" not in caplog.text
    path.parent.rename(path.parent.with_name("0" * 32))
    splitting()
    (message,) = [text for text in caplog.messages if "are not used" in text]
    assert message.startswith(f"{splitting.layout.journal} has 2 answers of an earlier version")
    assert "3 of 3 samples will be inferred" in message


def test_plan_says_it(splitting: Splitter, caplog: pytest.LogCaptureFixture) -> None:
    splitting(samples(2), 1).finish(*keys(2))
    splitting.run.configure(sampling={"max_tokens": 13})
    config = splitting.run.config
    with caplog.at_level(logging.WARNING):
        make_plan(config, Layout.of(config, 0), 1)
    (message,) = said(caplog)
    assert "sampling.max_tokens (512 -> 13): 2 of 2 samples will be inferred; 2 ans" in message
    # and changes nothing
    assert len(settings_files(splitting)) == 1


def test_a_dry_run_says_it(splitting: Splitter) -> None:
    splitting(samples(3), 1).finish(*keys(2))
    splitting.run.configure(sampling={"max_tokens": 13})
    config, layout = splitting.run.config, splitting.layout
    changed = what_changed(config, layout)
    assert changed == ["sampling.max_tokens (512 -> 13)"]
    stays = what_stays(config, layout)
    assert "will be inferred, at most 3; 2 answers stay under the old settings" in stays


def test_a_run_that_continues_is_not_split_again_because_of_the_output(
    splitting: Splitter,
) -> None:
    """A run with other settings was stopped before it replaced the output. Another split would
    refuse to start while its jobs run, and remove the rank files of those that have ended."""
    splitting(samples(3), 1).finish(*keys(3))
    infer(splitting.run.config, splitting.layout, 0, 1)
    consolidate(splitting.run.config, splitting.layout)
    splitting.run.configure(sampling={"max_tokens": 13})
    splitting().finish(*keys(1))
    config, layout = splitting.run.config, splitting.layout
    assert what_changed(config, layout) == []
    assert output_is_of_earlier_run(layout)
    assert what_stays(config, layout) == ""
    splitting.run.write_samples(samples(5))
    (change,) = what_changed(config, layout)
    assert change == "samples.jsonl"
    assert what_stays(config, layout) == ""


def test_a_dry_run_does_not_speak_of_what_asks_nothing(splitting: Splitter) -> None:
    splitting(samples(3), 1).finish(*keys(2))
    splitting.run.configure(run={"truncated": "error"})
    splitting.run.write_samples(samples(4))
    config, layout = splitting.run.config, splitting.layout
    changed = what_changed(config, layout)
    assert len(changed) == 2
    assert what_stays(config, layout) == ""


def test_code_that_asks_the_same_costs_nothing(splitting: Splitter) -> None:
    """Only split can tell whether a plugin builds other messages."""
    splitting(samples(3), 1).finish(*keys(2))
    plugin = splitting.run.folder / "plugin.py"
    plugin.write_text(plugin.read_text() + "# another parse")
    config, layout = splitting.run.config, splitting.layout
    assert len(what_changed(config, layout)) == 1
    assert what_stays(config, layout).startswith("a sample is inferred again only if its messages")


def test_another_input_is_one_change_that_costs_nothing(splitting: Splitter) -> None:
    splitting(samples(3), 1).finish(*keys(2))
    other = splitting.run.folder / "other.jsonl"
    other.write_text('{"path": "x.mp4"}\n')
    splitting.run.configure(data={"input_jsonl": "other.jsonl"})
    config, layout = splitting.run.config, splitting.layout
    (change,) = what_changed(config, layout)
    assert change.startswith("input (")
    assert what_stays(config, layout) == ""
