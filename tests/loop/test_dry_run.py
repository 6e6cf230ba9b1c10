"""What a dry run says a run will take."""

import re

import pytest
import runs


def mib(what: str, *arguments: str) -> int:
    """The number of MiB in the line that begins with `what`, of the quickstart with changes."""
    done = runs.call(runs.CONFIG, "--dry_run", *arguments)
    assert done.returncode == 0, done.stderr
    (number,) = re.findall(rf"^{what}.*: (\d+) MiB", done.stdout, re.MULTILINE)
    return int(number)


def test_a_control_takes_disk_and_memory_for_what_it_trains_alone():
    control = "--config.loop.control=no_synthetic"
    branch = "--config.loop.branch_from=runs/other"
    loop, branched, alone = (mib("disk", *given) for given in ([], [control, branch], [control]))
    assert alone < branched < loop
    # Four generations of two kinds of networks and images, of which a branch brings one.
    assert loop - alone == pytest.approx(4 * (branched - alone), abs=4)
    states = "memory per device, states"
    assert mib(states, control) < mib(states)


def test_memory_counts_the_images_that_an_annotator_learns_from():
    """2,500 images of 32x32 pixels before subsampling, 100 after it."""
    given = [
        f"--config.{override}"
        for override in (
            *("data.source=mnist5k", "data.image_size=32", "data.train_size=100"),
            *("sample.count=100", "loop.generations=1", "pool.rule=replace"),
        )
    ]
    pool = "memory per device, pool"
    annotated = mib(pool, *given, "--config.loop.group_source=annotator")
    assert annotated - mib(pool, *given) >= 2400 * 3072 // 2**20


def test_activations_are_those_of_a_microbatch():
    def line(*arguments: str) -> tuple[int, ...]:
        """Images at a time, and those that fit on each card, of the generator."""
        done = runs.call(runs.CONFIG, "--dry_run", *arguments)
        found = re.search(
            r"^activations, diffusion: up to [\d.]+ MiB an image, \d+ MiB for (\d+) images at a "
            r"time; cards of 24/40/80 GB hold about (\d+)/(\d+)/(\d+)$",
            done.stdout,
            re.MULTILINE,
        )
        assert found
        return tuple(map(int, found.groups()))

    whole, *cards = line("--config.diffusion.batch=64")
    parts, *same_cards = line("--config.diffusion.batch=64", "--config.diffusion.microbatches=4")
    assert whole == 4 * parts
    assert cards == same_cards == sorted(cards)
    again, *more = line("--config.diffusion.batch=64", "--config.diffusion.unet.remat=True")
    assert again == whole
    assert more[0] > 2 * cards[0]
