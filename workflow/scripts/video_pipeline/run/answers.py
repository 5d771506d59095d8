"""Decides whether answers that were cut off count, and describes answers that need a look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from video_pipeline.config import Config


def cut_off_at(usage: Mapping[str, Any], config: Config) -> str | None:
    """The setting that cut an answer off, which the user should raise; None if the answer was not
    cut off. ``usage`` is the ``__usage`` of the answer."""
    if usage["finish_reason"] != "length":
        return None
    tokens = _longest(usage)
    if tokens == usage.get("max_tokens"):
        return "max_tokens in the task's sampling"
    if tokens == config.sampling.max_tokens:
        return "sampling.max_tokens"
    if tokens == config.run.retry_truncated:
        return "run.retry_truncated"
    return "vllm.max_model_len"  # Prompt and answer together fill the model.


def _longest(usage: Mapping[str, Any]) -> int:
    """Tokens of the answer, or of the longest of several."""
    tokens: int = usage.get("longest", usage["completion_tokens"])
    return tokens


def reason_of_all(reasons: Iterable[str]) -> str:
    """The ``finish_reason`` of several answers together: ``length`` if an answer was cut off,
    ``stop`` if all ended by themselves."""
    others = [reason for reason in reasons if reason != "stop"]
    return "length" if "length" in others else next(iter(others), "stop")


def error_of(record: Mapping[str, Any], config: Config) -> dict[str, str] | None:
    """The ``__error`` of a record of the journal: its own, or that of an answer that does not
    count. Errors of ``parse`` come when the rank file is written."""
    error: dict[str, str] | None = record.get("__error")
    return error or why_no_answer(
        record["__usage"], record["output_text"], record.get("__reasoning"), config
    )


def why_no_answer(
    usage: Mapping[str, Any],
    output_text: str | list[str],
    reasoning: str | list[str] | None,
    config: Config,
    *,
    has_schema: bool = False,
) -> dict[str, str] | None:
    """The ``__error`` of an answer that does not count; None if it counts.

    With ``run.truncated: keep`` a text that was cut off counts, unless the model was still
    thinking. With a schema it never counts: half an object is no object. ``output_text`` is the
    answer without the thoughts of the model (``reasoning``), or a list of answers that count
    together. An empty text counts, but not after thoughts.
    """
    reason, tokens = usage["finish_reason"], _longest(usage)
    texts = [output_text] if isinstance(output_text, str) else output_text
    thoughts = [reasoning] if isinstance(reasoning, str) else reasoning or []
    answered = (text.strip() or not thought for text, thought in zip(texts, thoughts, strict=False))
    if reason == "stop" and all(answered):
        return None
    if reason != "length":
        message = f"the engine ended the answer after {tokens} tokens (finish_reason: {reason})"
        if reason == "stop":
            message = "the model ended within its thoughts, before an answer: "
            if config.sampling.model_dump().get("stop"):
                message += "remove sampling.stop, which applies to the thoughts, too, or "
            message += "turn thinking off (vllm.chat_template_kwargs)"
        return {"stage": "generate", "type": "Unfinished", "message": message}
    if not all(text.strip() for text in texts):
        message = f"there was no answer yet after {tokens} tokens"
    elif has_schema or config.run.truncated == "error":
        message = f"the answer did not end within {tokens} tokens"
    else:
        return None
    message = f"{message} ({cut_off_at(usage, config)})"
    if has_schema and not config.run.retry_truncated:
        message += "; run.retry_truncated allows more at a second try"
    return {"stage": "length", "type": "Truncated", "message": message}


def describe_cut_off(truncated: Mapping[str, int]) -> str:
    """``3 answers were cut off: raise sampling.max_tokens``; empty if there are none. ``truncated``
    says how many each setting cut off, see :func:`cut_off_at`."""
    count = sum(truncated.values())
    if not count:
        return ""
    answers = "answer was" if count == 1 else "answers were"
    keys = " and ".join(sorted(key for key in truncated if truncated[key]))
    # This key is in no fingerprint, so the answers would stay.
    how = "; docs/report.md says how to infer these again" if "max_model_len" in keys else ""
    return f"{count:,} {answers} cut off: raise {keys}{how}"


def describe_damaged(count: int) -> str:
    """``3 answers are about the part of a damaged video ...``; empty if there are none."""
    if not count:
        return ""
    answers = "answer is" if count == 1 else "answers are"
    return f"{count:,} {answers} about the part of a damaged video that could be read"


def describe_unparsed(count: int) -> str:
    """``parse failed on 3 answers: ...``; empty if there are none."""
    if not count:
        return ""
    answers = "answer" if count == 1 else "answers"
    return f"parse failed on {count:,} {answers}: fix it and run again; nothing is inferred twice"
