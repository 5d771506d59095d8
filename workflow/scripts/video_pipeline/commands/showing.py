"""Shows what a task does with samples, on a terminal: the prompt, the pictures that the model sees,
and its answer. This imports torch, so ``preview`` imports it only after its first message."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from video_pipeline.common.printable import printable
from video_pipeline.common.processes import job_processes
from video_pipeline.config import Config
from video_pipeline.config.vllm_version import VllmUnsupported
from video_pipeline.data.base import check_complete, expanded, inputs_of
from video_pipeline.data.choosing import create_dataset, dataset_of
from video_pipeline.engine import create_engine
from video_pipeline.engine.base import Answer, Constraints, Engine, RequestRefused
from video_pipeline.errors import Failure, UserError, explain, user_code
from video_pipeline.estimate.counting import PromptCounter
from video_pipeline.gpu.leases import lease_for
from video_pipeline.model.processor import SIMULATED_MODEL, dataset_model
from video_pipeline.model.prompt import check_processor, prompt_of, special_tokens
from video_pipeline.model.token_count import TokenCount
from video_pipeline.output.records import json_of
from video_pipeline.report.contact_sheet import all_pictures, contact_sheet
from video_pipeline.run.answers import cut_off_at, why_no_answer
from video_pipeline.run.run import DatasetNeeds
from video_pipeline.samples.identity import check_deterministic, request_digests
from video_pipeline.samples.input import task_sample
from video_pipeline.tasks.base import Messages, Task
from video_pipeline.tasks.registry import load_task
from video_pipeline.video.access import Access, limit_access

KEY = "preview"
"""``__key`` of the sample."""


def show(
    config: Config,
    samples: Sequence[tuple[dict[str, Any], Path]],
    say: Callable[[str], None],
    *,
    with_engine: bool,
) -> None:
    """Print what the task of ``config`` does with each of ``samples``, an input object and the file
    for the pictures that the model sees. ``say`` gets a message before each long step.

    Raises :class:`UserError` if the user's code, sample or settings are at fault.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    limit_access(Access.of(config.data))
    task = load_task(config)
    needs = DatasetNeeds.of(config, task)
    to_show = [(_sample(config, task, raw), sheet) for raw, sheet in samples]
    with contextlib.ExitStack() as stack:
        engine = None
        if with_engine:
            stack.enter_context(lease_for(config))
            folder = stack.enter_context(job_processes())
            engine = _engine(config, task)
        model = engine.dataset_model if engine else dataset_model(config)
        if not needs.own_rules:  # Otherwise vLLM loads the processor.
            check_processor(model)
        counter = PromptCounter(config, model)
        prepared = []
        for position, (sample, sheet) in enumerate(to_show):
            conversations = task.conversations(sample)
            video = sample.get(config.data.video_field)
            check_deterministic(task, sample, video, request_digests(task, sample, video))
            if len(samples) > 1:
                console.rule(f"sample {position + 1}: {printable(video)}", characters="═")
            try:
                llm_inputs = _llm_inputs(config, task, sample, conversations, model)
            except UserError as error:
                if len(samples) == 1:
                    raise
                console.print(f"it fails: {printable(error)}")
                continue
            for part, messages in conversations.items():
                console.rule(f"messages of {printable(part or task.name)}")
                _show_json(console, messages)
                console.rule("prompt")
                _show_prompt(console, counter, model, llm_inputs[part])
            _show_pictures(console, llm_inputs.values(), sheet)
            prepared.append((position, sample, llm_inputs))
        if engine is None or not prepared:
            return
        say(f"loads {config.model_name} and asks it; --no-engine leaves this out")
        asked = [llm_inputs for _, _, llm_inputs in prepared]
        constraints = [
            {part: Constraints.of(task, part, sample) for part in llm_inputs}
            for _, sample, llm_inputs in prepared
        ]
        answers = asyncio.run(_answers(engine, folder, asked, constraints))
        for (position, sample, _), answered in zip(prepared, answers, strict=True):
            if len(samples) > 1:
                console.rule(f"sample {position + 1}", characters="═")
            for part, answer in answered.items():
                console.rule(f"answer to {printable(part or task.name)}")
                _show_answer(console, config, task, sample, part, answer)


def _sample(config: Config, task: Task, raw: dict[str, Any]) -> dict[str, Any]:
    """The sample for task and dataset; the first sample if the input object stands for several."""
    dataset = dataset_of(config, task)
    field = config.data.video_field
    if dataset.needs_video and not raw.get(field):
        raise UserError(
            f"the sample has no video in {field!r} (data.video_field): give --video, or {field!r} "
            "in --sample"
        )
    with user_code("the dataset cannot make a sample"):
        raws = expanded(dataset, task_sample(KEY, raw, config), dict(config.task_params))
        return task_sample(KEY, raws[0], config)


def _engine(config: Config, task: Task) -> Engine:
    try:
        return create_engine(config, with_videos=dataset_of(config, task).needs_video)
    except VllmUnsupported as error:
        raise UserError(f"{error}. --no-engine shows everything but the answer") from error


def _llm_inputs(
    config: Config,
    task: Task,
    sample: dict[str, Any],
    conversations: dict[str, Messages],
    model: str,
) -> dict[str, dict[str, Any]]:
    """The dataset's ``llm_input`` for the sample, by conversation."""
    dataset = create_dataset(config, task, [sample], model)
    with user_code(f"the dataset cannot read {sample['__video_uri'] or 'the sample'}"):
        item = dataset[0]
    llm_inputs = inputs_of(item, dataset, KEY)
    check_complete(llm_inputs, conversations, dataset, KEY)
    return llm_inputs


def _show_prompt(
    console: Console, counter: PromptCounter, model: str, llm_input: dict[str, Any]
) -> None:
    if "messages" in llm_input and model != SIMULATED_MODEL:
        try:
            request = counter.request(llm_input)
        except (Failure, RequestRefused) as error:
            console.print(f"prompt: not known: {error}")
            return
        console.print(printable(request.get("prompt")))
        console.print(_tokens(counter.of_request(request)))
        return
    text, ids = prompt_of(llm_input), llm_input.get("prompt_token_ids")
    console.print(printable(text))
    if model == SIMULATED_MODEL:
        console.print("tokens: not known without a model")
        return
    if ids is not None:
        tokens = special_tokens(model).plain(text, ids)  # Special tokens that are only text here.
        if tokens:
            plain = ", ".join(map(printable, tokens))
            console.print(f"plain characters in the text of a message: {plain}")
    try:
        console.print(_tokens(counter.count(llm_input)))
    except Exception as error:  # A user's own dataset may give the processor anything.
        console.print(f"tokens: the model's processor refuses this input: {explain(error)}")


def _tokens(count: TokenCount) -> str:
    sound = f", {count.sound} of them sound" if count.sound else ""
    return f"tokens: {count.prompt} in the prompt, {count.visual} of them visual{sound}"


def _show_json(console: Console, value: Any) -> None:
    console.print(printable(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode()))


def _show_pictures(console: Console, llm_inputs: Iterable[dict[str, Any]], path: Path) -> None:
    console.rule("pictures")
    pictures = all_pictures(llm_inputs)
    if not pictures:
        console.print("none: the model sees text only")
        return
    for picture in pictures:
        console.print(picture.caption)
    try:
        contact_sheet(pictures).save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--sheet {path}: {error}") from error
    console.print(f"{len(pictures)} pictures: {printable(path)}")


async def _answers(
    engine: Engine,
    folder: Path,
    asked: Sequence[dict[str, dict[str, Any]]],
    constraints: Sequence[dict[str, Constraints]],
) -> list[dict[str, Answer]]:
    """The answers about each sample, by conversation."""
    try:
        await engine.start(folder)
        preparer = engine.preparer()
        preparer.start()
        answers = []
        for position, (llm_inputs, of_sample) in enumerate(zip(asked, constraints, strict=True)):
            name = f"{KEY}{position}"
            requests = preparer.prepare(llm_inputs, name)
            answers.append(
                {
                    part: await engine.generate(f"{name}{part}", request, of_sample[part])
                    for part, request in requests.items()
                }
            )
        return answers
    except RequestRefused as error:
        raise UserError(f"the engine refuses the request: {error.type}: {error}") from error
    finally:
        engine.stop()


def _show_answer(
    console: Console,
    config: Config,
    task: Task,
    sample: dict[str, Any],
    part: str,
    answer: Answer,
) -> None:
    if answer.reasoning is not None:
        console.print(f"reasoning: {printable(answer.reasoning)}")
    console.print(printable(answer.output_text))
    usage = answer.usage
    if key := cut_off_at(usage, config):
        tokens = answer.completion_tokens
        console.print(f"(cut off after {tokens} tokens: raise {key})", style="yellow")
    has_schema = task.json_schema(part) is not None
    error = why_no_answer(
        usage, answer.output_text, answer.reasoning, config, has_schema=has_schema
    )
    if error is not None:
        console.print(f"(it counts as failed: {printable(error['message'])})", style="yellow")
    console.rule("parsed")
    with user_code("parse"):
        fields = task.parsed(answer.output_text, sample, part, answer.logprobs)
        json_of(fields)
    _show_json(console, fields)
