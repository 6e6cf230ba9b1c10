"""Tables of predictions: missing values, given names, and groups nested in classes."""

import numpy as np
import pytest

from selfloop_jax.errors import UsageError
from selfloop_jax.measure.read_table import read_table


def write_csv(folder, label, pred, group):
    path = folder / "t.csv"
    rows = zip(label, pred, group, strict=True)
    path.write_text("label,pred,group\n" + "".join(f"{a},{b},{g}\n" for a, b, g in rows))
    return path


def write_npz(folder, label, pred, group):
    np.savez(folder / "t.npz", label=label, pred=pred, group=group)
    return folder / "t.npz"


def test_nan_in_an_array_is_an_unknown_group(tmp_path):
    group = [0, 1, 0, 1, np.nan, np.nan]
    table = read_table(write_npz(tmp_path, [0.0, 1, 0, 1, 0, 1], [0, 1, 0, 1, 0, 1], group))
    assert table.classes == ["0", "1"]
    assert table.groups == ["0", "1"]
    assert table.test_set.group.tolist() == [0, 1, 0, 1, -1, -1]


@pytest.mark.parametrize("text", ["", "NA", "n/a", "nan", "NaN", "None", "NULL"])
@pytest.mark.parametrize("known", [["0", "1"], ["0.0", "1.0"], ["red", "green"]])
def test_texts_for_a_missing_value_are_an_unknown_group(tmp_path, text, known):
    table = read_table(write_csv(tmp_path, [0, 1, 1], [0, 1, 1], [*known, text]))
    assert len(table.groups) == 2
    assert table.test_set.group[2] == -1
    assert (table.test_set.group[:2] >= 0).all()


def test_a_group_that_is_named_none_is_one(tmp_path):
    path = write_csv(tmp_path, [0, 1], [0, 1], ["none", "glasses"])
    table = read_table(path, group_names=["none", "glasses"])
    assert table.test_set.group.tolist() == [0, 1]


@pytest.mark.parametrize("text", ["NA", "nan", "null"])
@pytest.mark.parametrize("column", ["label", "pred"])
def test_a_missing_label_or_prediction_is_refused(tmp_path, text, column):
    columns = {"label": [0, 1], "pred": [0, 1]}
    columns[column] = [0, text]
    path = write_csv(tmp_path, **columns, group=[0, 1])
    with pytest.raises(UsageError, match=f"{column}: {text} in row 2; must be a number or a name"):
        read_table(path)


@pytest.mark.parametrize("names", [["1", "0"], ["0", "1"], ["1", "0.0", "2"]])
def test_names_that_are_numbers_name_these_numbers(tmp_path, names):
    path = write_csv(tmp_path, [0, 1, 1], [0, 0, 1], [1, 0, 1])
    table = read_table(path, class_names=names, group_names=names)
    numbers = [float(name) for name in names]
    for column, expected in (("label", [0, 1, 1]), ("pred", [0, 0, 1]), ("group", [1, 0, 1])):
        found = [numbers[i] for i in getattr(table.test_set, column)]
        assert found == expected
    assert table.classes == table.groups == names


def test_numbers_from_1_can_be_named(tmp_path):
    path = write_csv(tmp_path, [1, 2, 2], [1, 1, 2], [1, 2, 2])
    table = read_table(path, class_names=["1", "2"], group_names=["1", "2"])
    assert table.test_set.label.tolist() == [0, 1, 1]
    assert table.test_set.group.tolist() == [0, 1, 1]
    with pytest.raises(UsageError, match="label: 2 in row 2; must be one of 0, 1"):
        read_table(path, class_names=["0", "1"])


def test_other_names_are_those_of_0_1_and_so_on(tmp_path):
    path = write_csv(tmp_path, [0, 1, 1], [0, 0, 1], [1, 0, 1])
    table = read_table(path, class_names=["cat", "dog", "owl"], group_names=["dark", "light"])
    assert table.test_set.label.tolist() == [0, 1, 1]
    assert table.test_set.num_classes == 3


@pytest.mark.parametrize("names", [["a", "a"], ["1", "1.0"], ["a", ""]])
@pytest.mark.parametrize("flag", ["class_names", "group_names"])
def test_names_given_twice_are_refused(tmp_path, flag, names):
    path = write_csv(tmp_path, [0, 1], [0, 1], [0, 1])
    given = ",".join(names)
    with pytest.raises(UsageError, match=f"--{flag}={given}: must be different names, none empty"):
        read_table(path, **{flag: names})


@pytest.mark.parametrize(
    ("label", "group", "nested"),
    [
        ([0, 0, 1, 1], [0, 1, 2, 2], True),
        ([0, 0, 1, 1], [0, 1, 2, 1], False),
        ([0, 0, 1, 1], [0, 1, 2, -1], True),
        ([0, 0, 0, 0], [0, 1, 2, 2], False),  # one class: nothing to be nested in
        ([0, 1], [-1, -1], False),
    ],
)
def test_groups_of_one_class_each_are_nested(tmp_path, label, group, nested):
    table = read_table(write_csv(tmp_path, label, label, group), class_names=["0", "1"])
    assert table.test_set.nested == nested
