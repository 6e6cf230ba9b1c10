"""Rules across sections: a config that cannot be run is refused in one line."""

import pytest

from selfloop_jax import config as configs
from selfloop_jax.errors import UsageError


def config_with(changes):
    config = configs.default()
    config.update_from_flattened_dict(changes)
    return configs.typed(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.validation_share": 0.5, "data.reserve_share": 0.5},
            "data.reserve_share = 0.5: must be below 1 together with data.validation_share = 0.5",
        ),
        (
            {"diffusion.unet.multipliers": (1, 1, 1, 1, 1)},
            "diffusion.unet.multipliers = (1, 1, 1, 1, 1): must be few enough that "
            "data.image_size = 8, divided by diffusion.unet.stem = 1, can be halved after each but "
            "the last",
        ),
        (
            {"diffusion.unet.stem": 8},
            "diffusion.unet.multipliers = (1, 2): must be few enough that data.image_size = "
            "8, divided by diffusion.unet.stem = 8, can be halved after each but the last",
        ),
        (
            {"diffusion.unet.attention": (4, 2)},
            "diffusion.unet.attention = (4, 2): must be among (8, 4), the sides of this network's "
            "feature maps",
        ),
        (
            {"diffusion.unet.heads": 3},
            "diffusion.unet.heads = 3: must be a divisor of diffusion.unet.channels = 64",
        ),
        (
            {"diffusion.process": "ddpm", "diffusion.ddpm.timesteps": 10},
            "sample.steps = 15: must be <= diffusion.ddpm.timesteps = 10",
        ),
        (
            {"diffusion.edm.sigma_max": 0.002},
            "diffusion.edm.sigma_max = 0.002: must be > diffusion.edm.sigma_min = 0.002",
        ),
        (
            {"sample.guidance": 1.0, "diffusion.label_dropout": 0.0},
            "sample.guidance = 1.0: must be 0 where diffusion.label_dropout = 0",
        ),
        (
            {"loop.group_source": "requested"},
            "loop.group_source = requested: must be oracle | annotator where "
            "diffusion.condition_on = label",
        ),
        (
            {"parallel.steps_per_dispatch": 3, "checkpoint.interval_steps": 3},
            "diffusion.steps = 2000: must be a multiple of parallel.steps_per_dispatch = 3",
        ),
        (
            {
                "diffusion.process": "ddpm",
                "diffusion.ddpm.prediction": "eps",
                "sample.clip": False,
            },
            "sample.clip = False: must be True where diffusion.ddpm.prediction = eps and "
            "diffusion.ddpm.schedule = cosine, which divide by a signal of almost 0",
        ),
    ],
)
def test_what_cannot_be_together_is_refused(changes, message):
    with pytest.raises(UsageError) as caught:
        configs.check(config_with(changes))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "changes",
    [
        {"diffusion.unet.attention": (8, 4)},
        {"loop.control": "oracle_resample", "loop.control_of": "x"},
        {"loop.group_source": "requested", "diffusion.condition_on": "label_group"},
        {"diffusion.ddpm.timesteps": 10},  # of the other process
        {"sample.guidance": -1.0},
        {"diffusion.ddpm.prediction": "eps", "sample.clip": False},
        {
            "diffusion.process": "ddpm",
            "diffusion.ddpm.prediction": "eps",
            "diffusion.ddpm.schedule": "linear",
            "sample.clip": False,
        },
        {"parallel.steps_per_dispatch": 10, "annotator.steps": 7},  # no annotator is trained
    ],
)
def test_what_can_be_together_is_allowed(changes):
    configs.check(config_with(changes))


def test_a_choice_must_stand_in_its_table():
    configs.check_choice("pool.rule", "replace", {"replace": 1, "fresh": 2})
    with pytest.raises(UsageError, match=r"^pool.rule = mix: must be one of replace \| fresh$"):
        configs.check_choice("pool.rule", "mix", {"replace": 1, "fresh": 2})


def test_the_images_of_a_device_are_split_into_microbatches():
    parts = {"diffusion.batch": 64, "diffusion.microbatches": 4}
    configs.check_devices(config_with(parts), 4)
    with pytest.raises(
        UsageError,
        match=r"^diffusion.microbatches = 3: must be a divisor of 16, the images of a step per ",
    ):
        configs.check_devices(config_with(parts | {"diffusion.microbatches": 3}), 4)


def test_batches_are_split_over_the_devices():
    configs.check_devices(configs.Config(), 8)
    odd = {"annotator.batch": 100}
    configs.check_devices(config_with(odd), 8)
    with pytest.raises(
        UsageError, match=r"^annotator.batch = 100: must be a multiple of the 8 devices$"
    ):
        configs.check_devices(config_with(odd | {"loop.group_source": "annotator"}), 8)
    for section, batch in (("diffusion", 128), ("classifier", 128), ("measure", 600)):
        message = f"^{section}.batch = {batch}: must be a multiple of the 7 devices$"
        others = {"diffusion.batch": 7, "classifier.batch": 7, "measure.batch": 7}
        with pytest.raises(UsageError, match=message):
            configs.check_devices(config_with(others | {f"{section}.batch": batch}), 7)


@pytest.mark.parametrize(
    ("steps", "interval", "platform", "expected"),
    [(1000, 500, "cpu", 1), (1000, 500, "gpu", 10), (300, 24, "tpu", 6), (7, 500, "gpu", 1)],
)
def test_a_dispatch_has_one_step_on_a_cpu_and_up_to_ten_elsewhere(
    steps, interval, platform, expected
):
    changes = {"checkpoint.interval_steps": interval}
    for name in ("diffusion", "classifier"):
        changes |= {f"{name}.steps": steps, f"{name}.later.steps": steps}
    assert configs.steps_per_dispatch(config_with(changes), platform) == expected
    five = config_with(changes | {"parallel.steps_per_dispatch": 5})
    assert configs.steps_per_dispatch(five, platform) == 5
