"""The record's numbers of a generation, from networks that are plain functions of pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import presets
from selfloop_jax import config as configs
from selfloop_jax.data import dataset
from selfloop_jax.loop import context, measure_phase
from selfloop_jax.measure.features import NETWORKS, FeatureNetwork, Row
from selfloop_jax.measure.metrics import METRICS, Metric

CLASSIFIER = {key for key, metric in METRICS.items() if metric.value is not None}
COMPOSITION = {
    *("kl_to_real", "total_variation_to_real", "subgroup_coverage", "bias_aligned_share"),
    *("generated_count", "generated_unknown_group"),
}
FIDELITY = {key for key, metric in METRICS.items() if metric.section == "fidelity"}


@pytest.fixture(scope="module")
def config():
    fields = presets.load(Path("configs/quickstart.py")).get_config()
    fields.measure.replicates = 20
    return configs.typed(fields)


@pytest.fixture(scope="module")
def data(config):
    return dataset.load(config.data, config.seed)


def features(pixels):
    """float32[N,8]: means of the rows."""
    return pixels.mean(axis=(2, 3)).astype(np.float32)


def classify(pixels):
    """Logits float32[N,10] of a classifier that looks at two rows: right now and then."""
    classes = np.arange(10, dtype=np.float32)
    return -np.abs(features(pixels)[:, 3:4] / 12 - classes)


def inputs(config, data, **changes):
    """Inputs of generation 1; its generated images are 300 training images."""
    samples = data.train.take(np.arange(0, 900, 3))
    samples = replace(
        samples,
        origin=np.ones(300, np.int32),
        group=np.where(np.arange(300) % 50 == 0, -1, samples.group).astype(np.int32),
        requested_label=samples.label,
    )
    fields = {
        "config": config,
        "data": data,
        "generation": 1,
        "key_path": (0, "generation", 1),
        "classify": classify,
        "more_classify": (),
        "first_classify": classify,
        "features": FeatureNetwork("rows", features, digest="0" * 64),
        "generated_classify": None,
        "samples": samples,
        "confusion": None,
        "first_accuracy": 0.5,
    }
    return measure_phase.Inputs(**{**fields, **changes})


def test_every_number_of_a_record_has_a_row(config, data):
    outputs = measure_phase.measure(inputs(config, data, generated_classify=classify))
    record = outputs.record
    expected = CLASSIFIER | COMPOSITION | FIDELITY | {"classifier_agreement", "cas", "cas_ratio"}
    assert record["metrics"].keys() == expected
    parts = {"value", "low", "high", "null", "p", "baseline"}
    assert all({"value"} <= number.keys() <= parts for number in record["metrics"].values())
    assert record["tables"].keys() == {
        *("recall", "generated_counts", "fidelity_by_class", "fidelity_by_group")
    }
    assert record["metrics"]["generated_count"]["value"] == 300
    assert record["metrics"]["generated_unknown_group"]["value"] == 6
    assert record["tables"]["generated_counts"].sum() == 294
    accuracy = record["metrics"]["accuracy"]["value"]
    assert record["metrics"]["cas"]["value"] == accuracy
    assert record["metrics"]["cas_ratio"]["value"] == accuracy / 0.5
    # Copies of training images are nearer to those than to any held-out image.
    assert record["metrics"]["memorized_share"]["value"] > 0.6
    for key in ("copied_share", "copied_share_pixels"):
        assert record["metrics"][key]["low"] > record["metrics"][key]["baseline"]
    assert record["fidelity_features"] == {"network": "rows", "digest": "0" * 64, "dimension": 8}
    assert len(outputs.neighbours["id"]) == 30
    assert (outputs.neighbours["distance"] == 0).all()
    np.testing.assert_array_equal(outputs.predictions["logits"], classify(data.test.pixels))


def test_fidelity_compares_with_images_that_the_features_never_saw(config, data):
    """Features that know the training images by heart: none of these lies near another image."""
    known = set(map(bytes, data.train.pixels))

    def overfit(pixels):
        seen = np.array([bytes(image) in known for image in pixels])
        return features(pixels) + np.where(seen, 1e3, 0)[:, None].astype(np.float32)

    seen = measure_phase.measure(
        inputs(config, data, features=FeatureNetwork("overfit", overfit))
    ).record["metrics"]
    held_out = replace(data, reserve=data.reserve.take(slice(0)))
    without = measure_phase.measure(
        inputs(config, held_out, features=FeatureNetwork("overfit", overfit))
    ).record
    # The samples are training images: far from held-out ones in these features, which were near.
    assert seen["fid"]["value"] > 1e5
    assert seen["precision"]["baseline"] > 0.8
    assert without["metrics"]["fid"]["value"] < 1e3
    assert any("no image is held out" in note for note in without["notes"])
    assert np.isnan(without["metrics"]["fid"]["baseline"])


def test_all_intervals_are_of_the_level_that_the_config_names(config, data):
    annotated = replace(config, loop=replace(config.loop, group_source="annotator"))
    narrow = replace(annotated, measure=replace(config.measure, level=0.8))
    confusion = [np.array([[40, 5], [5, 40]])] * 10
    wide_record, narrow_record = (
        measure_phase.measure(
            inputs(one, data, confusion=confusion, generated_classify=classify)
        ).record
        for one in (annotated, narrow)
    )
    assert (wide_record["level"], narrow_record["level"]) == (0.95, 0.8)
    # Shares alone: an interval of a minimum may be all of [0, 1] at both levels.
    for key in (
        *("accuracy", "cas", "classifier_agreement", "memorized_share"),
        *("bias_aligned_share", "bias_aligned_share_corrected"),
    ):
        wide, narrow = (record["metrics"][key] for record in (wide_record, narrow_record))
        assert wide["value"] == narrow["value"]
        assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"], key
    shares = [record["tables"]["corrected_shares"] for record in (wide_record, narrow_record)]
    wide, narrow = (table["high"] - table["low"] for table in shares)
    assert (narrow < wide).all()


def test_a_control_has_the_numbers_of_the_classifier_alone(config, data):
    outputs = measure_phase.measure(inputs(config, data, samples=None))
    assert outputs.record["metrics"].keys() == CLASSIFIER
    assert outputs.record["tables"].keys() == {"recall"}
    assert outputs.neighbours is None


def test_an_annotator_gives_corrected_shares_and_its_agreement_with_colours(config, data):
    annotated = replace(config, loop=replace(config.loop, group_source="annotator"))
    confusion = [np.array([[40, 5], [5, 40]])] * 10
    record = measure_phase.measure(inputs(annotated, data, confusion=confusion)).record
    plain = measure_phase.measure(inputs(config, data)).record["metrics"]
    metrics = record["metrics"]
    assert metrics.keys() - plain.keys() == {
        *("annotator_agreement", "bias_aligned_share_corrected", "bias_aligned_share_by_colour")
    }
    assert metrics["annotator_agreement"]["value"] == 294 / 300
    corrected = metrics["bias_aligned_share_corrected"]
    assert corrected["low"] < corrected["value"] < corrected["high"]
    assert np.shape(record["tables"]["corrected_shares"]["share"]) == (10, 2)
    # An annotator's errors are part of the null.
    assert metrics["kl_to_real"]["null"] != plain["kl_to_real"]["null"]


def test_imposed_groups_have_no_null(config, data):
    imposed = replace(config, diffusion=replace(config.diffusion, condition_on="label_group"))
    metrics = measure_phase.measure(inputs(imposed, data)).record["metrics"]
    assert metrics["kl_to_real"].keys() == {"value"}
    assert metrics["bias_aligned_share"].keys() == {"value", "low", "high"}


def test_a_metric_from_outside_is_in_the_record(config, data, monkeypatch):
    added = Metric("gap", "gap", better="lower", value=lambda t: t.recall_difference[0])
    monkeypatch.setitem(METRICS, "gap", added)
    record = measure_phase.measure(inputs(config, data, samples=None)).record
    assert record["metrics"]["gap"].keys() == {"value", "null", "p"}
    assert (
        record["metrics"]["macro_std"]
        == (measure_phase.measure(inputs(config, data)).record["metrics"]["macro_std"])
    )


def test_the_split_that_the_config_names_is_measured(config, data):
    validated = replace(config, measure=replace(config.measure, split="validation"))
    outputs = measure_phase.measure(inputs(validated, data, samples=None))
    assert outputs.record["split"] == "validation"
    np.testing.assert_array_equal(outputs.predictions["id"], data.validation.id)


def test_a_run_holds_the_network_that_its_config_names(config, data, monkeypatch):
    """Its weights are an input of the run, as those that a classifier starts from."""
    asked = []

    def extract(pixels):
        asked.append(len(pixels))
        return features(pixels)

    network = FeatureNetwork("mine", extract, digest="ab")
    monkeypatch.setitem(NETWORKS, "mine", Row(lambda asked: network))
    chosen = replace(config, measure=replace(config.measure, features="mine"))
    opened = context.RunContext(chosen, data, lambda: False)
    assert opened.feature_network.name == "mine"
    # Those of the training images are computed once for all generations.
    train = data.train.pixels
    for pixels in (train, train[:5], train, train[:5]):
        found = opened.feature_network.extract(pixels)
        np.testing.assert_array_equal(found, features(pixels))
    assert asked == [len(train), 5, 5]
    assert opened.inputs["initial_weights"] == {"measure.features": "ab"}
    default = context.RunContext(config, data, lambda: False)
    assert default.feature_network is None
    assert default.inputs["initial_weights"] == {}
