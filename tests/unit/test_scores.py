"""The probability of each label, from the log probabilities of an answer's tokens."""

from __future__ import annotations

import math

import pytest
from video_pipeline.tasks.scores import label_scores


def place(token: str, **likely: float) -> dict:
    """A token of an answer, with probabilities of the tokens at its place. ``_`` is a space."""
    found = {text.replace("_", " "): math.log(share) for text, share in likely.items()}
    top = [{"token": text, "logprob": logprob} for text, logprob in found.items()]
    return {"token": token, "logprob": found[token], "top_logprobs": top}


def test_letters_share_what_no_label_begins_with():
    scores = label_scores([place("A", A=0.5, B=0.25, X=0.25)], ["A", "B"])
    assert scores == pytest.approx({"A": 2 / 3, "B": 1 / 3})


def test_a_label_is_the_sum_of_the_tokens_that_begin_it():
    scores = label_scores([place("Yes", Yes=0.4, Ye=0.1, _Yes=0.1, N=0.4)], ["Yes", "No"])
    assert scores == pytest.approx({"Yes": 0.6, "No": 0.4})


def test_labels_that_begin_alike_are_told_apart_by_a_later_token():
    answer = [place("ca", ca=0.8, film=0.2), place("r", r=0.75, t=0.25)]
    scores = label_scores(answer, ["car", "cat", "film"])
    assert scores == pytest.approx({"car": 0.6, "cat": 0.2, "film": 0.2})


def test_what_several_labels_go_on_with_counts_for_none():
    answer = [place("film", film=0.5, ca=0.3, cat=0.2)]
    assert label_scores(answer, ["car", "cat", "film"]) == pytest.approx(
        {"car": 0.0, "cat": 2 / 7, "film": 5 / 7}
    )


def test_space_before_the_answer_does_not_count():
    answer = [place(" ", _=0.9, B=0.1), place("A", A=1.0)]
    assert label_scores(answer, ["A", "B"]) == pytest.approx({"A": 0.9, "B": 0.1})


def test_space_before_a_label_does_not_count():
    answer = [place(" A", _A=0.9, _B=0.1)]
    assert label_scores(answer, [" A", " B"]) == pytest.approx({" A": 0.9, " B": 0.1})


@pytest.mark.parametrize("answer", [[], [place("C", C=0.6, A=0.4)], [place("c", c=1.0)]])
def test_an_answer_that_is_none_of_the_labels(answer):
    with pytest.raises(ValueError, match="is none of the labels"):
        label_scores(answer, ["A", "car", "cat"])


def test_labels_of_which_one_begins_with_another():
    with pytest.raises(ValueError, match="the label 'cargo' begins with another one, 'car'"):
        label_scores([place("car", car=1.0)], ["car", "cargo"])
