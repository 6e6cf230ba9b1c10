"""Loops that do no harm are not said to do some; a loop that does is."""

import math

import pytest

from benchmarks import placebo

STUDIES = 40  # benchmarks/placebo.py does 1,000


@pytest.mark.parametrize("case", ["nothing", "copies"])
def test_a_placebo_is_never_called_a_change(case):
    found = placebo.run(case, STUDIES, seeds=6)
    assert found["any_change"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / STUDIES)
    assert set(found["verdicts"]) <= {"no change", "undecided", *placebo.FALSE}


def test_a_generator_of_half_the_groups_is_found_out():
    found = placebo.run("half of the groups", 10, seeds=8)
    assert found["any_change"] == 1
    # Under `replace` alone, in both biases: two of six verdicts.
    assert found["verdicts"]["amplification"] == pytest.approx(1 / 3, abs=0.02)
