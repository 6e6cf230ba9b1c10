"""Phases as values: what applies is read, computed and written; records merge or refuse."""

import pytest

from selfloop_jax.loop.phase import Phase, Result, each, merge


def doubling(**changes):
    fields = {
        "name": "double",
        "read": lambda run: run["number"],
        "compute": each(lambda number: 2 * number),
        "write": lambda run, output: Result(record={"metrics": {"doubled": {"value": output}}}),
    }
    return Phase(**{**fields, **changes})


def test_a_phase_reads_computes_and_writes():
    assert doubling().run({"number": 4}).record == {"metrics": {"doubled": {"value": 8}}}


def test_a_phase_that_does_not_apply_leaves_nothing():
    def fail(run):
        raise AssertionError("read")

    result = doubling(applies=lambda run: False, read=fail).run({"number": 4})
    assert (result.digests, result.record, result.rates) == ({}, {}, {})


def test_compute_takes_one_input_per_replica():
    assert doubling().compute([1, 2, 3]) == [2, 4, 6]


def test_records_of_phases_merge_section_by_section():
    parts = [{"pool": {"size": 3}, "metrics": {"a": 1}}, {"metrics": {"b": 2}}]
    assert merge(parts) == {"pool": {"size": 3}, "metrics": {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    "second", [{"metrics": {"a": 2}}, {"split": "validation"}], ids=["number", "entry"]
)
def test_two_phases_cannot_set_the_same_entry(second):
    with pytest.raises(ValueError, match="two phases set"):
        merge([{"metrics": {"a": 1}, "split": "test"}, second])
