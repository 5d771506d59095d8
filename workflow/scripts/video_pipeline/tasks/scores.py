"""Computes the probability of each of several labels from the log probabilities of an answer."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any


def label_scores(logprobs: list[dict[str, Any]], labels: Collection[str]) -> dict[str, float]:
    """The probability of each label as the answer, from the log probabilities of its tokens.

    A token that the model did not take counts for a label if only this label continues with it. If
    several labels do, the token counts for none of them. So the scores are exact for labels that
    differ in their first character, such as letters, and an estimate otherwise. They sum to 1.

    Args:
        logprobs: ``sample["__logprobs"]`` in :meth:`Task.parse`: for each token of the answer an
            object with ``token`` (text), ``logprob`` (natural logarithm) and ``top_logprobs`` (the
            most likely tokens at its place, with the same two), as in OpenAI's chat completions.
        labels: Texts; none of them begins with another one.

    Raises:
        ValueError: The answer is none of the labels, or one label begins with another.
    """
    for label in labels:
        if longer := [other for other in labels if other != label and other.startswith(label)]:
            raise ValueError(f"the label {longer[0]!r} begins with another one, {label!r}")
    scores = dict.fromkeys(labels, 0.0)
    answer, reached = "", 1.0
    for taken in logprobs:
        for other in taken["top_logprobs"]:
            likely = _beginning_with(answer + other["token"], labels)
            if other["token"] != taken["token"] and len(likely) == 1:
                scores[likely[0]] += reached * math.exp(other["logprob"])
        answer += taken["token"]
        reached *= math.exp(taken["logprob"])
        likely = _beginning_with(answer, labels)
        if len(likely) == 1:
            scores[likely[0]] += reached
            total = sum(scores.values())
            return {label: score / total for label, score in scores.items()}
    raise ValueError(f"the answer {answer!r:.80} is none of the labels {', '.join(labels):.200}")


def _beginning_with(answer: str, labels: Collection[str]) -> list[str]:
    """The labels that an answer may become. Space before either does not count."""
    start = answer.lstrip()
    return [label for label in labels if label.lstrip().startswith(start)]
