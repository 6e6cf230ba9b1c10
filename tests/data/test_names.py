"""Tests names of classes and groups: their normal form, what they cannot hold, what looks alike."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop_jax.data import names
from selfloop_jax.errors import UsageError


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "01"),
        ("1", "1.0"),
        ("1", "+1"),
        ("10", "1e1"),
        ("10", "1_0"),
        ("3", "\u0663"),  # an Arabic digit
        ("1", "\uff11"),  # of full width
        ("cat", "Cat"),
        ("cop", "\u0441\u043e\u0440"),  # Cyrillic
        ("A1", "\u03911"),  # Greek
        ("fish", "\ufb01sh"),  # a ligature
        ("hot dog", "hot  dog"),
        ("a-b", "a\u2013b"),
        ("it's", "it\u2019s"),
        ("x", "\U0001d431"),  # a mathematical letter
        ("Straße", "STRASSE"),
    ],
)
def test_names_that_look_alike_are_refused(one, other):
    with pytest.raises(UsageError) as caught:
        names.check_distinct(["dog", one, "bird", other], "classes")
    line = str(caught.value)
    assert line.isascii()
    assert ascii(one) in line
    assert ascii(other) in line


def test_names_that_differ_are_taken():
    every = [
        "a",
        "A",
        "b",
        "10",
        "1",
        "0.1",
        "inf",
        "nano",
        "猫",
        "犬",
        "naïve",
        "naive",
        "hot-dog",
    ]
    names.check_distinct([*every, "hot dog", "hot_dog", "a b"], "classes")


@pytest.mark.parametrize(
    "text",
    [
        *("a\u200bb", "\u200da", "a\u00adb", "a\u202eb", "\ufeffa", "x\ufe0f", "a\u034f"),
        *("a\u00a0b", "a\u3000b", "\u3164", "\u2800", "a\tb", "a\nb", "a\x7f", "a\u2028b"),
        *("caf\udce9", "\ue000", "", " ", "nan", "NaN", "<NA>"),
    ],
)
def test_what_nobody_sees_is_refused(text):
    with pytest.raises(UsageError) as caught:
        names.normal(text, "row 2: label")
    line = str(caught.value)
    assert line.startswith("row 2: label = ")
    assert line.isascii()
    assert "\n" not in line


@settings(deadline=None, derandomize=True, database=None)
@given(st.text(st.characters(categories=["L", "N", "P", "M"]), min_size=1))
def test_the_normal_form_is_one(text):
    """Composed and decomposed spellings are one name, which is its own normal form."""
    try:
        name = names.normal(text, "label")
    except UsageError:
        return
    assert names.normal(name, "label") == name
    assert names.normal(unicodedata.normalize("NFD", text), "label") == name
    names.check_distinct([name, names.normal(f" {text} ", "label")], "label")
