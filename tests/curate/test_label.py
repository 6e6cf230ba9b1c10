"""Labels and groups of generated images: condition, classifier, colour oracle and annotator."""

from types import SimpleNamespace

import numpy as np
import pytest

from selfloop_jax.curate.label import (
    assign_groups,
    assign_labels,
    confusion_matrices,
    most_likely_group,
)
from selfloop_jax.data.colorize import MODES

CROSSED = np.ones((2, 3), bool)


NESTED = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]], bool)


def section(**values):
    return SimpleNamespace(**({"label_source": "requested", "group_source": "annotator"} | values))


def data(groups=("red", "green"), groups_of_class=CROSSED[:, :2]):
    return SimpleNamespace(
        groups=groups, colours=MODES["two_colour"], groups_of_class=groups_of_class
    )


def test_the_best_group_is_one_that_the_class_has():
    logits = np.array(
        [[9, 1, 2, 3, 4], [0, 1, 9, 3, 4], [9, 8, 2, 3, 1], [1, 2, 3, 5, 4]], np.float32
    )
    found = most_likely_group(logits, np.array([0, 0, 1, 1]), NESTED)
    assert found.dtype == np.int32
    assert found.tolist() == [0, 1, 3, 3]
    assert most_likely_group(logits[:, :3], np.array([0, 1, 0, 1]), CROSSED).tolist() == [
        0,
        2,
        0,
        2,
    ]


def test_a_class_without_groups_has_none_to_give():
    members = np.array([[1, 1], [0, 0]], bool)
    assert most_likely_group(np.ones((2, 2)), np.array([0, 1]), members).tolist() == [0, -1]


def test_a_requested_nested_group_is_unknown_under_another_label():
    nested = SimpleNamespace(groups=tuple("abcde"), colours=None, groups_of_class=NESTED)
    requested, label = np.array([0, 1, 4, -1], np.int32), np.array([0, 1, 1, 0], np.int32)
    found = assign_groups(
        section(group_source="requested"), requested, label, np.zeros((4, 1, 1, 3)), None, nested
    )
    assert found.dtype == np.int32
    assert found.tolist() == [0, -1, 4, -1]


@pytest.mark.parametrize("members", [CROSSED, NESTED])
def test_confusion_counts_true_against_found_within_each_class(members):
    count = 200
    label = np.arange(count) % 2
    choose = [np.flatnonzero(row) for row in members]
    group = np.array([choose[c][i // 2 % len(choose[c])] for i, c in enumerate(label)])
    found = np.array([choose[c][i // 7 % len(choose[c])] for i, c in enumerate(label)])
    group[5::11] = -1
    tables = confusion_matrices(label, group, found, members)
    assert sum(table.sum() for table in tables) == (group >= 0).sum()
    for c, table in enumerate(tables):
        for i, true in enumerate(choose[c]):
            for j, named in enumerate(choose[c]):
                assert table[i, j] == ((label == c) & (group == true) & (found == named)).sum()


def test_each_group_source_gives_its_own_groups():
    requested, label = np.array([1, 0], np.int32), np.array([0, 1], np.int32)
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    pixels[0, :2, :, 0] = 200  # red
    pixels[1, :2, :, 1] = 200  # green
    logits = np.array([[1, 0], [5, 4]], np.float32)
    groups = {
        source: assign_groups(
            section(group_source=source), requested, label, pixels, logits, data()
        ).tolist()
        for source in ("requested", "oracle", "annotator")
    }
    assert groups == {"requested": [1, 0], "oracle": [0, 1], "annotator": [0, 0]}


def test_a_single_group_needs_no_annotator():
    lone = data(groups=("all",), groups_of_class=np.ones((2, 1), bool))
    found = assign_groups(
        section(), None, np.zeros(3, np.int32), np.zeros((3, 4, 4, 3), np.uint8), None, lone
    )
    assert found.tolist() == [0, 0, 0]


def test_each_label_source_gives_its_own_labels():
    condition = np.array([2, 1], np.int32)
    logits = {"previous": np.eye(3)[[0, 1]], "frozen": np.eye(3)[[1, 2]]}
    groups = {
        source: assign_labels(section(label_source=source), condition, logits.get(source)).tolist()
        for source in ("requested", "previous", "frozen")
    }
    assert groups == {"requested": [2, 1], "previous": [0, 1], "frozen": [1, 2]}
