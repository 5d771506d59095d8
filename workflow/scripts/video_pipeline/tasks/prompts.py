"""Prompts as data: texts and templates from ``task_params``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from video_pipeline.errors import UserError

FILE = "_file"
"""``task_params`` with this ending name a file that holds the prompt."""

TEMPLATE_SUFFIXES = frozenset({".j2", ".jinja", ".jinja2"})

_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=False
)
_MARKS = ("{{", "{%", "{#")
"""Where none of these stands, a template is a text."""


class Prompt:
    """A text about a sample.

    ``task_params.<name>`` holds the text itself, a Jinja2 template over the fields of the sample
    (``{{ title }}``, ``{{ previous.description }}``), and ``task_params.<name>_file`` the path of a
    file: a template if it ends with one of :data:`TEMPLATE_SUFFIXES`, else taken as it is. Where
    neither is given the text is ``default``.

    Raises :class:`UserError` if both are given, for a file that cannot be read, and for a template
    that is none.
    """

    def __init__(
        self,
        params: dict[str, Any],
        name: str,
        default: str | None = None,
        *,
        place: str = "task_params",
    ) -> None:
        """``place``: where ``params`` stand, for messages."""
        self._place = f"{place}.{name}"
        text, file = params.get(name), params.get(name + FILE)
        if text is not None and file is not None:
            raise UserError(f"give either {self._place} or {self._place}{FILE}")
        is_template = True
        if file is not None:
            self._place = str(file)
            try:
                path = Path(file).absolute()
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError, TypeError) as error:
                raise UserError(f"{place}.{name}{FILE}: cannot read {file}: {error}") from error
            is_template = Path(file).suffix in TEMPLATE_SUFFIXES
        elif text is None:
            text = default
        if not isinstance(text, str):
            raise UserError(f"{self._place}: expected a text, got {text!r:.80}")
        self._text = text
        self._template: jinja2.Template | None = None
        if is_template:
            try:
                self._template = _ENVIRONMENT.from_string(text)
            except jinja2.TemplateSyntaxError as error:
                raise UserError(f"{self._place}, line {error.lineno}: {error.message}") from error
            # jinja2's own mapping is copied for each sample, by Python code
            self._template.globals = dict(self._template.globals)
            if not any(mark in text for mark in _MARKS):
                self._text, self._template = self._template.render(), None

    def render(self, sample: dict[str, Any]) -> str:
        """The text for ``sample``.

        Raises :class:`ValueError` where the template asks for what the sample does not have.
        """
        if self._template is None:
            return self._text
        try:
            return self._template.render(sample)
        except jinja2.UndefinedError as error:
            raise ValueError(
                f"{self._place}: {error.message}; there are {', '.join(_fields_of(sample))}"
            ) from error
        except Exception as error:  # whatever an expression does
            raise ValueError(f"{self._place}: {type(error).__name__}: {error}") from error


def _fields_of(sample: dict[str, Any]) -> list[str]:
    """What a template can ask for: the fields of a sample and of the record before it."""
    previous = sample.get("previous")
    said = previous if isinstance(previous, dict) else {}
    names = [*sample, *(f"previous.{name}" for name in said)]
    return [name for name in names if not name.startswith(("__", "previous.__"))]


def prompt_files(params: dict[str, Any]) -> dict[str, str]:
    """The files that ``task_params`` names, by the names of the params: the answers depend on their
    content."""
    return {n: value for n, value in params.items() if n.endswith(FILE) and isinstance(value, str)}
