"""Try a task on one sample: what is asked, what the model sees, what it says.

python -m video_pipeline.preview my_plugin.py --task my_task --video clip.mp4
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

import orjson

from video_pipeline import cli
from video_pipeline.config import Config, load_config
from video_pipeline.engine.base import Answer, Constraints
from video_pipeline.errors import UserError, where
from video_pipeline.samples import task_sample
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import load_task

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
    config = load_config(args.configfile or {}).model_dump()
    config["run"]["plugins"] = [*config["run"]["plugins"], *args.plugins]
    if args.task:
        config["run"]["task"] = args.task
    if args.model:
        config["vllm"]["model"] = args.model
    if args.video:  # as the shell knows it, whatever the samples are relative to
        config["data"]["video_root"] = Path.cwd()
    return load_config(config)


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

    from video_pipeline.data.registry import create_dataset  # torch
    from video_pipeline.data.seen import pictures
    from video_pipeline.video.access import Access, limit_access

    console = Console(highlight=False, markup=False, soft_wrap=True)
    limit_access(Access.of(config.data))
    task = load_task(config)
    sample = task_sample(KEY, raw, config)
    conversations = task.conversations(sample)
    engine = None
    if with_engine:
        from video_pipeline.engine import create_engine

        engine = create_engine(config)
    model = engine.dataset_model if engine else _model(config)
    dataset = create_dataset(config, task, [sample], model)
    try:
        item = dataset[0]
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the dataset cannot read the sample: {type(error).__name__}: {error} ({where(error)})"
        ) from error
    llm_inputs = item["llm_inputs"] if "llm_inputs" in item else {"": item["llm_input"]}
    for part, messages in conversations.items():
        console.rule(f"messages of {part or task.name}")
        console.print(orjson.dumps(messages, option=orjson.OPT_INDENT_2).decode())
        console.rule("prompt")
        console.print(cli.plain(llm_inputs[part]["prompt"]))
        console.print(_tokens(model, llm_inputs[part]))
    _show_pictures(console, {p: pictures(i) for p, i in llm_inputs.items()}, sheet)
    if engine is not None:
        constraints = {part: Constraints.of(task, part) for part in llm_inputs}
        answers = asyncio.run(_answers(engine, llm_inputs, constraints))
        for part, answer in answers.items():
            console.rule(f"answer to {part or task.name}")
            _show_answer(console, task, sample, part, answer)


def _model(config: Config) -> str:
    from video_pipeline.data.prompt import SIMULATED_MODEL

    return SIMULATED_MODEL if config.run.engine == "simulated" else config.vllm.model


def _tokens(model: str, llm_input: dict[str, Any]) -> str:
    from video_pipeline.data.prompt import count_tokens

    count = count_tokens(model, llm_input)
    if count is None:
        return "tokens: not known without a model"
    return f"tokens: {count.prompt} in the prompt, {count.visual} of them visual"


def _show_pictures(console: Any, seen: dict[str, list[Any]], path: Path) -> None:
    from video_pipeline.report.contact_sheet import contact_sheet

    console.rule("pictures")
    shown = next((each for each in seen.values() if each), [])
    for picture in shown:
        console.print(picture.caption)
    if shown:
        contact_sheet([p.image for p in shown], [p.caption for p in shown]).save(path)
        console.print(f"{len(shown)} pictures: {path}")
    else:
        console.print("none: the model sees text only")


async def _answers(
    engine: Any, llm_inputs: dict[str, dict[str, Any]], constraints: dict[str, Constraints]
) -> dict[str, Answer]:
    try:
        await engine.start()
        preparer = engine.preparer()
        preparer.start()
        requests = preparer.prepare(llm_inputs, KEY)
        return {
            part: await engine.generate(part or KEY, request, constraints[part])
            for part, request in requests.items()
        }
    finally:
        engine.stop()


def _show_answer(
    console: Any, task: Task, sample: dict[str, Any], part: str, answer: Answer
) -> None:
    if answer.reasoning is not None:
        console.print(f"reasoning: {cli.plain(answer.reasoning)}")
    console.print(cli.plain(answer.output_text))
    if answer.is_truncated:
        console.print(f"(cut off after {answer.completion_tokens} tokens: sampling.max_tokens)")
    console.rule("parsed")
    try:
        fields = task.parsed(answer.output_text, sample, part)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"parse: {type(error).__name__}: {error} ({where(error)})") from error
    console.print(orjson.dumps(fields, option=orjson.OPT_INDENT_2, default=str).decode())


if __name__ == "__main__":
    cli.run(main)
