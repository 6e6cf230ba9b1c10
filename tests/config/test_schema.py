"""The schema: every field has a meaning and a rule that names it, and survives all three forms."""

import dataclasses
import json
import math
import types
from typing import get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop_jax import config as configs
from selfloop_jax.config.fields import leaves
from selfloop_jax.config.stored import read_config
from selfloop_jax.errors import RunError, UsageError

FIELDS = {name: (value, declared) for name, value, declared in leaves(configs.Config())}


RULES = [name for name, (_, declared) in FIELDS.items() if declared.metadata["rule"]]


# At least one value of its type is against every rule.
CANDIDATES = {int: (-2, -1, 0, 2**40), float: (-1.5, 0.0, 1.0, 1.5), str: ("nonsense",)}


def value_of(kind):
    """Any value of a field's type."""
    if isinstance(kind, types.UnionType):
        return st.one_of(*map(value_of, get_args(kind)))
    if get_origin(kind) is tuple:
        return st.lists(value_of(get_args(kind)[0]), max_size=3).map(tuple)
    return {
        bool: st.booleans(),
        int: st.integers(-(2**40), 2**40),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=10),
    }[kind]


def changed(field, value):
    """The default config with one field changed, as the command line does it."""
    config = configs.default()
    section = config
    *path, name = field.split(".")
    for part in path:
        section = section[part]
    with config.unlocked():
        section[name] = value
    return config


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_says_what_it_is_and_its_default_obeys_its_rule(field):
    value, declared = FIELDS[field]
    assert len(declared.metadata["what"]) > 3
    rule = declared.metadata["rule"]
    assert rule is None or rule.holds(value)


def test_the_default_is_valid_and_is_what_config_files_start_from():
    configs.check(configs.Config())
    assert configs.typed(configs.default()) == configs.Config()
    assert configs.typed({}) == configs.Config()
    with pytest.raises(AttributeError):
        configs.default().diffusion.step = 3


@settings(deadline=None)
@given(st.data())
def test_a_config_is_the_same_as_file_as_object_and_as_json(data):
    field = data.draw(st.sampled_from(sorted(FIELDS)))
    value = data.draw(value_of(FIELDS[field][1].type))
    config = configs.typed(changed(field, value))
    found = {name: there for name, there, _ in leaves(config)}
    assert found == {name: there for name, (there, _) in FIELDS.items()} | {field: value}
    stored = json.loads(json.dumps(config.to_dict()))
    assert stored == config.to_dict()
    assert configs.typed(stored) == config


@pytest.mark.parametrize("field", RULES)
def test_a_rule_refuses_naming_field_value_and_rule(field):
    default, declared = FIELDS[field]
    rule = declared.metadata["rule"]
    values = [(), (0,)] if isinstance(default, tuple) else CANDIDATES[type(default)]
    wrong = [value for value in values if not rule.holds(value)]
    assert wrong
    for value in wrong:
        with pytest.raises(UsageError) as caught:
            configs.check(configs.typed(changed(field, value)))
        assert str(caught.value) == f"{field} = {value}: must be {rule.words}"


@pytest.mark.parametrize(
    "field", [name for name, (value, _) in FIELDS.items() if isinstance(value, float)]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_must_be_finite(field, value):
    with pytest.raises(UsageError, match=rf"^{field} = {value}: must be finite$"):
        configs.check(configs.typed(changed(field, value)))


def test_the_numbers_of_a_table_must_be_finite():
    config = configs.typed(changed("data.bias.per_class", ((0.5, math.nan),)))
    with pytest.raises(UsageError, match=r"^data\.bias\.per_class = .*nan.*: must be finite$"):
        configs.check(config)


def test_whole_numbers_and_lists_do_for_floats_and_tuples():
    config = configs.typed(
        {"sample": {"guidance": 2}, "diffusion": {"unet": {"multipliers": [1, 2, 4]}}}
    )
    assert type(config.sample.guidance) is float
    assert config.diffusion.unet.multipliers == (1, 2, 4)
    rows = configs.typed({"data": {"bias": {"per_class": [[1, 0.5], [0, 1]]}}}).data.bias.per_class
    assert rows == ((1.0, 0.5), (0.0, 1.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": 1.0}, "seed = 1.0: must be a whole number"),
        ({"seed": True}, "seed = True: must be a whole number"),
        ({"sample": {"clip": 1}}, "sample.clip = 1: must be True or False"),
        ({"sample": {"guidance": "2"}}, "sample.guidance = '2': must be a number"),
        ({"sample": {"guidance": 10**400}}, "must be a number"),
        ({"data": {"source": None}}, "data.source = None: must be text"),
        (
            {"classifier": {"stages": [1, 2.0]}},
            "classifier.stages = [1, 2.0]: must be a tuple of which each is a whole number",
        ),
        (
            {"data": {"bias": {"per_class": ["a"]}}},
            "data.bias.per_class = ['a']: must be a tuple of which each is a number or a tuple",
        ),
        (
            {"data": {"bias": "rho"}},
            "data.bias = rho: is a section; its fields are kind, rho, per_class",
        ),
        ({"diffusion": {"step": 3}}, "diffusion.step: unknown field; did you mean steps?"),
        ({"data": {"ratio": 0.5}}, "data.ratio: unknown field"),
        ({"trainer": {}}, "trainer: unknown field; must be one of study | seed | data"),
        ({"annotator": {"later": {}}}, "annotator.later: unknown field"),
    ],
)
def test_what_does_not_fit_is_named(values, message):
    with pytest.raises(UsageError) as caught:
        configs.typed(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_config_of_a_run_is_read_again(tmp_path):
    config = configs.typed(changed("data.bias.per_class", (0.5,) * 10))
    path = tmp_path / "config.json"
    with pytest.raises(UsageError, match=rf"^{tmp_path}: no run there"):
        read_config(tmp_path)
    path.write_text(json.dumps(config.to_dict()))
    assert read_config(tmp_path) == config
    path.write_text(json.dumps(config.to_dict() | {"log": {"every_seconds": 10.0}}))
    with pytest.raises(
        UsageError, match=rf"^{path}: log\.every_seconds: unknown .*another version"
    ):
        read_config(tmp_path)
    path.write_text("[]")
    with pytest.raises(RunError, match=rf"^{path}: damaged"):
        read_config(tmp_path)


def test_a_description_has_all_fields():
    lines = configs.describe(configs.Config()).splitlines()
    assert [line.split(" = ")[0] for line in lines] == list(FIELDS)
    assert all("  # " in line for line in lines)


def test_sections_are_values():
    for section in dataclasses.fields(configs.Config):
        value = getattr(configs.Config(), section.name)
        if dataclasses.is_dataclass(value):
            assert hash(value) == hash(type(value)(**dict(vars(value))))
            with pytest.raises(dataclasses.FrozenInstanceError):
                value.anything = 1
