"""The sentence at the end of a run: what it says for each kind of table."""

import numpy as np
import pytest

from evaluation.baselines import CONSTANT, MIXED_MODEL
from report.sentence import Answers, compared, sentence

RNG = np.random.default_rng(0)
HARD = RNG.gamma(3, 1, 50) / 3  # how hard each subject is


def answers(own, without, mixed, constant=3.0, count=50, names=True):
    errors = [factor * HARD[:count] * (1 + 0.02 * RNG.normal(size=count)) for factor in (own, without, mixed, constant)]
    others = {MIXED_MODEL: errors[2], CONSTANT: errors[3]}
    return Answers(errors[0], errors[1], others, [f"s{number}" for number in range(count)] if names else ())


def test_a_good_table_is_told_in_own_units_with_and_without_points_and_beside_the_best_baseline():
    text = sentence({4: answers(0.01, 1.0, 0.0144)}, 4, 100.0, "Chick", "weight\n", 0.91)
    assert text.startswith("With 4 points of a new Chick weight\\n is off by ")
    for part in ("(root mean squared error, 50 subjects); without any by ", "; linear mixed model ", "17% lower", "50 of 50"):
        assert part in text
    assert text.endswith(". 90% intervals hold 91%.") and "\n" not in text


@pytest.mark.parametrize(
    ("found", "start"),
    [
        (answers(1.0, 1.0, 1.0), "Own points bring nothing here: with 4 points "),
        (answers(3.0, 3.0, 3.0), "Nothing predicts y here: with 4 points "),
        (answers(0.1, 1.0, 0.1), "With 4 points "),
    ],
)
def test_own_points_or_a_model_that_bring_nothing_are_said_to(found, start):
    assert sentence({4: found}, 4, 1.0, "id", "y").startswith(start)


def test_equal_undecided_lower_and_higher_are_four_different_words():
    noise = np.exp(0.8 * np.random.default_rng(1).normal(size=50))
    words = [compared(HARD * factor, HARD) for factor in (1.05, noise, 0.5, 2.0, np.nan)]
    starts = [
        "equal within 3%",
        "undecided (",
        "29% lower (95% interval ",
        "41% higher (95% interval ",
        "which can't be compared",
    ]
    assert [text.startswith(start) for text, start in zip(words, starts, strict=True)] == [True] * 5, words


def test_the_subject_that_decides_is_named():
    own, other = HARD.copy(), HARD.copy()
    own *= 1.3
    other[7] += 60.0
    found = Answers(own, 100 * own, {MIXED_MODEL: other}, [f"s{number}" for number in range(50)])
    assert "Without s7 alone: " in sentence({4: found}, 4, 1.0, "id", "y")
    assert "Without" not in sentence({4: answers(0.1, 1.0, 0.2)}, 4, 1.0, "id", "y")


def test_other_k_where_it_is_far_worse_and_few_subjects_are_said():
    text = sentence({4: answers(0.1, 1.0, 0.1), 1: answers(1.0, 1.0, 0.2)}, 4, 1.0, "id", "y")
    assert "At K = 1 it is off by 12" in text and "% more than linear mixed model." in text
    text = sentence({4: answers(0.1, 1.0, 0.1), 1: answers(2.0, 1.0, 2.0)}, 4, 1.0, "id", "y")
    assert "% more than the same without points." in text
    assert "6 subjects decide little." in sentence({4: answers(0.1, 1.0, 0.1, count=6)}, 4, 1.0, "id", "y")
