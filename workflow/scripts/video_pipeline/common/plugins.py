"""Imports the user's plugins, so that their tasks and datasets register."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from video_pipeline.errors import UserError, explain, place_of


def load_plugins(plugins: list[str]) -> None:
    """Import every plugin once; a file becomes the module ``video_pipeline_plugin_<stem>``.

    Raises :class:`UserError` with the user's own line if an import fails.
    """
    for plugin in plugins:
        try:
            if plugin.endswith(".py"):
                _load_file(Path(plugin))
            else:
                importlib.import_module(plugin)
        except UserError as error:
            place = place_of(error)
            if not place:
                raise
            raise UserError(f"plugin {plugin}: {error}{place}") from error
        except (Exception, SystemExit) as error:
            raise UserError(f"plugin {plugin} failed on import: {explain(error)}") from error


def _load_file(path: Path) -> None:
    name = f"video_pipeline_plugin_{path.stem}"
    if name in sys.modules:
        loaded = Path(str(sys.modules[name].__file__))
        if loaded.absolute() == path.absolute():
            return
        raise UserError(f"two plugins are called {path.name}: {loaded} and {path}; rename one")
    if not path.is_file():
        raise UserError(f"plugin {path} not found (in {Path.cwd()}); see run.plugins")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # Python finds outdated bytecode by second and size, so it would miss the second of two edits.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.dont_write_bytecode = before
