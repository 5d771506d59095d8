"""Prompts as data: texts and templates from ``task_params``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from video_pipeline.errors import UserError
from video_pipeline.tasks.base import Messages, Task

FILE = "_file"
"""The ending of ``task_params`` that name a file."""

TEMPLATE_SUFFIXES = frozenset({".j2", ".jinja", ".jinja2"})

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
# A field goes before the method of its name: `{{ previous.items }}`.
_ENVIRONMENT.getattr = _ENVIRONMENT.getitem  # type: ignore[assignment]
_MARKS = ("{{", "{%", "{#")
"""Every template that is more than plain text has one of these."""


class Prompt:
    """A text about a sample.

    ``task_params.<name>`` holds the text itself, a Jinja2 template over the fields of the sample
    (``{{ title }}``, ``{{ previous.description }}``). ``task_params.<name>_file`` holds the path of
    a file: a template if it ends with one of :data:`TEMPLATE_SUFFIXES`, else plain text.

    Args:
        params: ``task_params`` of the configuration.
        name: The name of the parameter.
        default: The template if ``params`` has neither.
        place: The place of ``params`` in the configuration, for messages.

    Raises:
        UserError: ``params`` has both, the file cannot be read, or the template has a mistake.
    """

    def __init__(
        self,
        params: dict[str, Any],
        name: str,
        default: str | None = None,
        *,
        place: str = "task_params",
    ) -> None:
        self._place = f"{place}.{name}"
        if not isinstance(name, str):  # YAML reads `1` and `yes` as something else.
            raise UserError(f"{self._place}: expected a text as its name; put it in quotes")
        text, file = params.get(name), params.get(name + FILE)
        if text is not None and file is not None:
            raise UserError(f"give either {self._place} or {self._place}{FILE}")
        if file is not None:
            self._place = str(file)
            try:
                text = Path(file).absolute().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError, TypeError) as error:
                raise UserError(f"{place}.{name}{FILE}: cannot read {file}: {error}") from error
        elif text is None:
            text = default
        if not isinstance(text, str):
            raise UserError(f"{self._place}: expected a text, got {text!r:.80}")
        self._text = text
        self._template: jinja2.Template | None = None
        if file is None or Path(file).suffix in TEMPLATE_SUFFIXES:
            self._compile()

    def _compile(self) -> None:
        try:
            template = _ENVIRONMENT.from_string(self._text)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{self._place}, line {error.lineno}: {error.message}") from error
        # For each sample Jinja2 copies these, and a dict is the quickest to copy.
        template.globals = dict(template.globals)
        if any(mark in self._text for mark in _MARKS):
            self._template = template
        else:
            self._text = template.render()

    def render(self, sample: dict[str, Any]) -> str:
        """The text for ``sample``.

        Raises :class:`ValueError` if the template needs a field that the sample does not have.
        """
        if self._template is None:
            return self._text
        try:
            return self._template.render(sample)
        except Exception as error:  # An expression can raise anything.
            why = f"{type(error).__name__}: {error}"
            if isinstance(error, jinja2.UndefinedError):
                why = f"{error.message}; there are {', '.join(_fields_of(sample))}"
            raise ValueError(f"{self._place}: {why}") from error


class PromptTask(Task):
    """Base of the built-in tasks that ask one prompt about each sample: ``task_params.prompt``,
    ``task_params.prompt_file`` or :attr:`default_prompt`."""

    in_messages = ("prompt", "prompt_file")
    default_prompt: str
    system = ""

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        super().__init__(params)
        self._prompt = Prompt(self.params, "prompt", self.default_prompt)

    def build_messages(self, sample: dict[str, Any]) -> Messages:
        return about_video(sample, self._prompt.render(sample), self.system)


def about_video(sample: dict[str, Any], text: str, system: str = "") -> Messages:
    """A conversation that shows the video of ``sample`` and then asks ``text``. Conversations that
    begin with the same video share its computation in the engine."""
    video = {"type": "video", "video": sample["__video_uri"]}
    messages: Messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": [video, {"type": "text", "text": text}]}]


def _fields_of(sample: dict[str, Any]) -> list[str]:
    """The names that a template can use: fields of the sample and of its previous record."""
    previous = sample.get("previous")
    fields = previous if isinstance(previous, dict) else {}
    names = [*sample, *(f"previous.{name}" for name in fields)]
    return [name for name in names if not name.startswith(("__", "previous.__"))]


def prompt_files(params: dict[str, Any]) -> dict[str, str]:
    """The files that ``task_params`` names, by the params. The answers depend on their content."""
    return {n: value for n, value in params.items() if n.endswith(FILE) and isinstance(value, str)}
