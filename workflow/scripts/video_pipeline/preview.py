"""Try a task on one sample: what is asked, what the model sees, what it says.

python -m video_pipeline.preview my_plugin.py --task my_task --video clip.mp4
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from video_pipeline import cli
from video_pipeline.answers import cut_off_at, why_no_answer
from video_pipeline.config import Config, load_config
from video_pipeline.engine.base import Answer, Constraints, Engine, RequestRefused
from video_pipeline.errors import Failure, UserError, explain
from video_pipeline.gpus import lease_for
from video_pipeline.identity import request_digests
from video_pipeline.processes import job_processes
from video_pipeline.samples import task_sample
from video_pipeline.scanning import Reading, check_deterministic
from video_pipeline.tasks.base import Messages, Task
from video_pipeline.tasks.registry import load_task

if TYPE_CHECKING:
    from rich.console import Console

KEY = "preview"
"""``__key`` of the sample."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m video_pipeline.preview", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("plugins", nargs="*", metavar="PLUGIN", help="Python files or modules")
    parser.add_argument("--task", help="a registered task; default: run.task")
    parser.add_argument("--video", help="path or address of the video")
    parser.add_argument(
        "--sample", default="{}", metavar="JSON", help="other fields of the sample, as JSON"
    )
    parser.add_argument("--configfile", type=Path, help="the configuration of the run")
    parser.add_argument("--model", help="instead of vllm.model")
    parser.add_argument("--no-engine", action="store_true", help="do not ask the model")
    parser.add_argument(
        "--sheet", type=Path, default=Path("preview.png"), help="where the pictures go"
    )
    args = parser.parse_args()
    config = _config(args)
    preview(config, _raw(args, config), args.sheet, with_engine=not args.no_engine)


def _config(args: argparse.Namespace) -> Config:
    config = _stage(load_config(args.configfile or {}), args.task).model_dump()
    config["run"]["plugins"] = [*config["run"]["plugins"], *args.plugins]
    if args.task:
        config["run"]["task"] = args.task
    if args.model:
        config["vllm"]["model"] = args.model
    if args.video:  # as the shell knows it, whatever the samples are relative to
        config["data"]["video_root"] = Path.cwd()
    return load_config(config)


def _stage(config: Config, task: str | None) -> Config:
    """The stage that runs ``task``; the first one if none does."""
    stages = [own for _, own in config.by_stage()]
    return next((own for own in stages if own.run.task == task), stages[0])


def _raw(args: argparse.Namespace, config: Config) -> dict[str, Any]:
    try:
        raw = orjson.loads(args.sample)
    except orjson.JSONDecodeError as error:
        raise UserError(f"--sample: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"--sample: expected a JSON object, got {args.sample:.80}")
    return {**raw, config.data.video_field: args.video} if args.video else raw


def preview(config: Config, raw: dict[str, Any], sheet: Path, *, with_engine: bool) -> None:
    """Show what the task of ``config`` does with the sample ``raw``; the pictures that the model
    sees go to ``sheet``.

    Raises :class:`UserError` where the user's code, sample or settings are at fault, naming the
    line.
    """
    from rich.console import Console

    from video_pipeline.video.access import Access, limit_access

    console = Console(highlight=False, markup=False, soft_wrap=True)
    limit_access(Access.of(config.data))
    task = load_task(config)
    sample = _sample(config, task, raw)
    conversations = task.conversations(sample)
    video = sample.get(config.data.video_field)
    check_deterministic(task, sample, video, request_digests(task, sample, video))
    with contextlib.ExitStack() as stack:
        engine = None
        if with_engine:
            stack.enter_context(lease_for(config))
            folder = stack.enter_context(job_processes())
            engine = _engine(config, task)
        model = engine.dataset_model if engine else _model(config)
        llm_inputs = _llm_inputs(config, task, sample, conversations, model)
        for part, messages in conversations.items():
            console.rule(f"messages of {cli.plain(part or task.name)}")
            _show_json(console, messages)
            console.rule("prompt")
            console.print(cli.plain(llm_inputs[part].get("prompt")))
            if plain := _plain_characters(model, llm_inputs[part]):
                console.print(f"plain characters in the text of a message: {', '.join(plain)}")
            console.print(_tokens(model, llm_inputs[part]))
        _show_pictures(console, llm_inputs.values(), sheet)
        if engine is not None:
            constraints = {part: Constraints.of(task, part) for part in llm_inputs}
            answers = asyncio.run(_answers(engine, folder, llm_inputs, constraints))
            for part, answer in answers.items():
                console.rule(f"answer to {cli.plain(part or task.name)}")
                _show_answer(console, config, task, sample, part, answer)


def _sample(config: Config, task: Task, raw: dict[str, Any]) -> dict[str, Any]:
    """What the task and the dataset see; of a sample that stands for several, the first."""
    from video_pipeline.data.base import expanded  # torch
    from video_pipeline.data.registry import check_params, dataset_of

    dataset = dataset_of(config, task)
    check_params(config, task, dataset)
    Reading.of(dataset)
    field = config.data.video_field
    if dataset.needs_video and not raw.get(field):
        raise UserError(f"the sample has no video: give --video, or {field!r} in --sample")
    try:
        sample = task_sample(KEY, raw, config)
        several = expanded(dataset, sample, dict(config.task_params))
        return task_sample(KEY, several[0], config)
    except Failure:
        raise
    except Exception as error:
        raise UserError(f"the sample cannot be: {explain(error)}") from error


def _engine(config: Config, task: Task) -> Engine:
    from video_pipeline.data.registry import dataset_of
    from video_pipeline.engine import VllmUnfit, create_engine

    try:
        return create_engine(config, with_videos=dataset_of(config, task).needs_video)
    except VllmUnfit as error:
        raise UserError(f"{error}. --no-engine shows everything but the answer") from error


def _model(config: Config) -> str:
    from video_pipeline.model.processor import SIMULATED_MODEL

    return SIMULATED_MODEL if config.run.engine == "simulated" else config.vllm.model


def _llm_inputs(
    config: Config,
    task: Task,
    sample: dict[str, Any],
    conversations: dict[str, Messages],
    model: str,
) -> dict[str, dict[str, Any]]:
    """What the dataset makes of the sample, by conversation."""
    from video_pipeline.data.base import check_complete, inputs_of
    from video_pipeline.data.registry import create_dataset
    from video_pipeline.model.prompt import check_processor

    check_processor(model)
    dataset = create_dataset(config, task, [sample], model)
    try:
        item = dataset[0]
    except Failure:
        raise
    except Exception as error:
        video = sample["__video_uri"]
        raise UserError(f"the dataset cannot read {video or 'it'}: {explain(error)}") from error
    llm_inputs = inputs_of(item, dataset, KEY)
    check_complete(llm_inputs, conversations, dataset, KEY)
    return llm_inputs


def _plain_characters(model: str, llm_input: dict[str, Any]) -> list[str]:
    """What looks like a special token in a prompt and is none."""
    from video_pipeline.model.processor import SIMULATED_MODEL
    from video_pipeline.model.prompt import special_tokens

    text, ids = (llm_input.get(name) for name in ("prompt", "prompt_token_ids"))
    if model == SIMULATED_MODEL or text is None or ids is None:
        return []
    return [cli.plain(token) for token in special_tokens(model).plain(text, ids)]


def _tokens(model: str, llm_input: dict[str, Any]) -> str:
    from video_pipeline.model.token_count import count_tokens

    try:
        count = count_tokens(model, llm_input)
    except Exception as error:  # what a user's own dataset may hand to any processor
        return f"tokens: the model's processor refuses this input: {explain(error)}"
    if count is None:
        return "tokens: not known without a model"
    return f"tokens: {count.prompt} in the prompt, {count.visual} of them visual"


def _show_json(console: Console, value: Any) -> None:
    console.print(cli.plain(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode()))


def _show_pictures(console: Console, llm_inputs: Iterable[dict[str, Any]], path: Path) -> None:
    from video_pipeline.data.model_pictures import all_pictures
    from video_pipeline.report.contact_sheet import contact_sheet

    console.rule("pictures")
    shown = all_pictures(llm_inputs)
    for picture in shown:
        console.print(picture.caption)
    if shown:
        sheet = contact_sheet([p.image for p in shown], [p.caption for p in shown])
        try:
            sheet.save(path)
        except (OSError, ValueError) as error:
            raise UserError(f"--sheet {path}: {error}") from error
        console.print(f"{len(shown)} pictures: {cli.plain(path)}")
    else:
        console.print("none: the model sees text only")


async def _answers(
    engine: Engine,
    folder: Path,
    llm_inputs: dict[str, dict[str, Any]],
    constraints: dict[str, Constraints],
) -> dict[str, Answer]:
    try:
        await engine.start(folder)
        preparer = engine.preparer()
        preparer.start()
        requests = preparer.prepare(llm_inputs, KEY)
        return {
            part: await engine.generate(part or KEY, request, constraints[part])
            for part, request in requests.items()
        }
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
        console.print(f"reasoning: {cli.plain(answer.reasoning)}")
    console.print(cli.plain(answer.output_text))
    usage = answer.usage
    if key := cut_off_at(usage, config):
        tokens = answer.completion_tokens
        console.print(f"(cut off after {tokens} tokens: raise {key})", style="yellow")
    has_schema = task.json_schema(part) is not None
    error = why_no_answer(usage, answer.output_text, config, has_schema=has_schema)
    if error is not None:
        console.print(f"(it counts as failed: {cli.plain(error['message'])})", style="yellow")
    console.rule("parsed")
    try:
        fields = task.parsed(answer.output_text, sample, part)
    except Failure:
        raise
    except Exception as error:
        raise UserError(f"parse: {explain(error)}") from error
    _show_json(console, fields)


if __name__ == "__main__":
    cli.run(main)
