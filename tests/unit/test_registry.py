"""Registered tasks and datasets, and the plugins that register them."""

from __future__ import annotations

import logging
import re
import subprocess
import sys

import pytest
from helpers import PROJECT, SCRIPTS
from video_pipeline.common.plugins import load_plugins
from video_pipeline.common.registry import Registry, is_built_in
from video_pipeline.config import load_config
from video_pipeline.data.base import BaseDataset
from video_pipeline.data.registry import _DATASETS, get_dataset, register_dataset
from video_pipeline.errors import UserError
from video_pipeline.run.origin import code_files
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import _TASKS, get_task, register_task

pytestmark = pytest.mark.usefixtures("forget_plugins")


def task_class(name: str, module: str, qualname: str = "Mine") -> type[Task]:
    """A task as if written in another module."""

    def build_messages(self, sample):
        return []

    body = {"name": name, "build_messages": build_messages, "__module__": module}
    return type(qualname, (Task,), body)


@pytest.fixture
def registry() -> Registry:
    return Registry("task", Task, built_ins=())


def test_a_registered_class_is_found(registry):
    cls = task_class("x", "user")
    assert registry.add("x", cls) is cls
    assert registry.get("x") is cls


def test_an_unknown_name_lists_those_registered_and_the_nearest(registry):
    for name in ("describe", "caption", "tag"):
        registry.add(name, task_class(name, "user", name))
    with pytest.raises(UserError) as caught:
        registry.get("descibe")
    message = str(caught.value)
    assert "no task is called 'descibe'" in message
    assert "did you mean 'describe'?" in message
    assert "caption, describe, tag" in message


def test_a_class_that_nobody_registered_is_named(registry):
    parent, forgotten = task_class("x", "user"), task_class("y", "user", "Forgotten")
    registry.add("x", parent)
    below = type("Below", (parent,), {"name": "z", "__module__": "user"})
    with pytest.raises(UserError) as caught:
        registry.get("y")
    for cls in (forgotten, below):
        assert f"; user.{cls.__name__} lacks @register_task" in str(caught.value)
    assert "user.Mine lacks" not in str(caught.value)


def test_a_class_that_others_derive_from_need_not_be_registered(registry):
    shared = task_class("w", "user", "Shared")
    registry.add("v", type("Chosen", (shared,), {"name": "v", "__module__": "user"}))
    left_out = type("LeftOut", (shared,), {"name": "y", "__module__": "user"})
    with pytest.raises(UserError) as caught:
        registry.get("y")
    assert f"; user.{left_out.__name__} lacks @register_task" in str(caught.value)
    assert "Shared lacks" not in str(caught.value)
    assert "Chosen lacks" not in str(caught.value)


def test_the_built_in_ones_are_listed():
    with pytest.raises(UserError, match=r"describe, .*structured_caption"):
        get_task("xyzzy")
    with pytest.raises(UserError, match=r"frames, .*qwen_video"):
        get_dataset("xyzzy")


def built_in(registry: Registry) -> list[str]:
    """The names of the project's own classes; other tests may have registered more."""
    return sorted(name for name, cls in registry._classes.items() if is_built_in(cls))


def test_the_pages_list_the_built_in_tasks_and_datasets():
    get_task("describe")
    get_dataset("text")
    page = (PROJECT / "docs" / "tasks.md").read_text(encoding="utf-8")
    table = page.partition("| task | what it asks |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| \[?`(\w+)`", table, re.MULTILINE)) == built_in(_TASKS)
    page = (PROJECT / "docs" / "datasets.md").read_text(encoding="utf-8")
    table = page.partition("| dataset | what the model sees |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == built_in(_DATASETS)


@pytest.mark.parametrize("users_first", [True, False])
def test_a_users_class_replaces_a_built_in_and_the_log_says_so(registry, caplog, users_first):
    users = task_class("describe", "my_plugin")
    built_in = task_class("describe", "video_pipeline.tasks.describe", "Describe")
    with caplog.at_level(logging.INFO):
        for cls in (users, built_in) if users_first else (built_in, users):
            registry.add("describe", cls)
    assert registry.get("describe") is users
    assert "describe" in caplog.text
    assert "my_plugin" in caplog.text
    assert "replaces" in caplog.text


def test_two_classes_of_users_under_one_name(registry):
    registry.add("x", task_class("x", "one"))
    with pytest.raises(UserError, match=r"two tasks are called 'x': one\.Mine and two\.Mine"):
        registry.add("x", task_class("x", "two"))


def test_two_classes_of_one_file_under_one_name(tmp_path):
    """Copied and changed, but for its names."""
    source = (
        "from video_pipeline.tasks.base import Task\n"
        "from video_pipeline.tasks.registry import register_task\n"
    )
    for number in (1, 2):
        source += (
            "@register_task\nclass Copied(Task):\n    name = 'copied'\n"
            f"    def build_messages(self, sample):\n        return {number}\n"
        )
    path = tmp_path / "copied_plugin.py"
    path.write_text(source)
    with pytest.raises(UserError, match="copied"):
        load_plugins([str(path)])


def test_the_same_class_twice_is_fine(registry):
    cls = task_class("x", "user")
    registry.add("x", cls)
    registry.add("x", cls)
    assert registry.get("x") is cls


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_task_needs_a_name(name):
    with pytest.raises(UserError, match=r"my_module\.Mine: give the task a name"):
        register_task(task_class(name, "my_module"))


@pytest.mark.parametrize("thing", [object, 3, lambda sample: []])
def test_only_the_right_classes_register(registry, thing):
    with pytest.raises(UserError, match="must be a subclass of Task"):
        registry.add("x", thing)


def test_a_task_decorator_with_a_name():
    with pytest.raises(UserError, match=r"takes no name: @register_task, and name = 'mine' in"):
        register_task("mine")


def test_a_dataset_decorator_without_a_name():
    """``@register_dataset`` instead of ``@register_dataset("name")``."""
    with pytest.raises(UserError, match="name"):

        @register_dataset
        class Nameless(BaseDataset):
            def __getitem__(self, i):
                return {}


def test_a_task_without_build_messages(registry):
    """An abstract class cannot be made: say so when it registers, or where it is used."""
    with pytest.raises(UserError, match="build_messages"):
        registry.add("x", type("Half", (Task,), {"name": "x", "__module__": "user"}))


# --- plugins -----------------------------------------------------------------------------------

TASK = """\
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import register_task

@register_task
class Mine(Task):
    name = "{name}"
    def build_messages(self, sample):
        return []
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Writes a plugin file into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "my_plugin.py") -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return name

    return write


def test_a_plugin_file_registers(plugin):
    load_plugins([plugin(TASK.format(name="from_file"))])
    assert get_task("from_file").__name__ == "Mine"


def test_a_plugin_is_imported_once(plugin, tmp_path):
    name = plugin("print('imported', file=open('count.txt', 'a'))\n")
    load_plugins([name])
    load_plugins([name, f"./{name}", str(tmp_path / name)])
    assert (tmp_path / "count.txt").read_text() == "imported\n"


def test_a_plugin_module_registers(plugin, tmp_path, monkeypatch):
    plugin(TASK.format(name="from_module"), "a_module_of_mine.py")
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins(["a_module_of_mine"])
    assert get_task("from_module").__name__ == "Mine"
    del sys.modules["a_module_of_mine"]


def test_plugin_files_are_those_with_a_suffix():
    config = load_config({"run": {"plugins": ["a.py", "b.c", "d/e.py"]}})
    assert list(map(str, code_files(config))) == ["a.py", "d/e.py"]


def test_two_plugins_of_one_name(plugin):
    first, second = plugin("", "one/same.py"), plugin("", "two/same.py")
    with pytest.raises(UserError, match=r"two plugins are called same\.py: .*one.* two/same\.py"):
        load_plugins([first, second])


def test_a_missing_plugin_says_where_it_was_looked_for(plugin, tmp_path):
    with pytest.raises(UserError, match=rf"nothing\.py not found \(in {tmp_path}\)"):
        load_plugins(["nothing.py"])
    with pytest.raises(UserError, match="no_such_module_anywhere"):
        load_plugins(["no_such_module_anywhere"])


BROKEN = {
    "an import": ("\nimport no_such_module_anywhere\n", 2, "no_such_module_anywhere"),
    "a name": ("x = 1\n\ny = undefined_name\n", 3, "undefined_name"),
    "syntax": ("x = 1\ndef f(:\n", 2, "SyntaxError"),
    "inside a library": ("import json\njson.loads('{')\n", 2, "JSONDecodeError"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_plugin_that_fails_names_file_and_line(plugin, case):
    text, line, said = BROKEN[case]
    name = plugin(text)
    with pytest.raises(UserError) as caught:
        load_plugins([name])
    message = str(caught.value)
    assert said in message
    assert "my_plugin.py" in message
    assert f"line {line}" in message


def test_a_module_that_fails_names_file_and_line(plugin, tmp_path, monkeypatch):
    plugin("\n\nx = undefined_name\n", "a_broken_module.py")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"a_broken_module\.py, line 3"):
        load_plugins(["a_broken_module"])


def test_a_plugin_that_failed_can_be_fixed(plugin):
    name = plugin("undefined_name\n")
    with pytest.raises(UserError, match="undefined_name"):
        load_plugins([name])
    plugin(TASK.format(name="fixed") + "# longer than before\n")
    load_plugins([name])
    assert get_task("fixed")


def test_a_plugin_can_use_its_own_dataclasses(plugin):
    """Needs the module in sys.modules while it is executed."""
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Point:\n    x: int = 0\n"
    )
    load_plugins([plugin(text)])
    assert sys.modules["video_pipeline_plugin_my_plugin"].Point().x == 0


def test_a_dataset_is_looked_up_without_its_reader():
    """Each split does that, and torchvision would make it wait for more than a second."""
    look = (
        f"import sys; sys.path.insert(0, {str(SCRIPTS)!r})\n"
        "from video_pipeline.data.registry import get_dataset\n"
        "get_dataset('video')\n"
        "assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", look], check=True)
