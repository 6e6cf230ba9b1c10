"""The studies by name: each is a list of phases."""

from selfloop_jax.config import check_choice
from selfloop_jax.loop.stage import Study
from selfloop_jax.studies import self_consuming

STUDIES: dict[str, Study] = {study.name: study for study in (self_consuming.STUDY,)}


def study_of(name: str) -> Study:
    """The study that `config.study` names; UsageError on any other name."""
    check_choice("study", name, STUDIES)
    return STUDIES[name]
