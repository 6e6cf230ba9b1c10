"""The self-consuming loop of arXiv 2410.10160, as a list of phases per generation.

The pool of generation 0 is real data only. What the generator of generation g makes enters the
pools of later generations, by the rule of `pool.rule`. Images are labelled after the classifier of
their generation is trained: with `loop.label_source = previous` that is the classifier trained just
before the pool that the images enter, so that the images of generation 0 have one too.
"""

from selfloop_jax.loop import branch, dry_run, measure_phase, phases, setup
from selfloop_jax.loop.stage import Study

STUDY = Study(
    name="self_consuming",
    phases=(
        phases.ANNOTATOR,  # generation 0 only: the frozen classifier of groups
        phases.POOL,  # real images, and generated ones by the pool rule
        phases.DIFFUSION,  # the generator, trained on the pool
        phases.SAMPLE,  # its images, for requested labels
        phases.CLASSIFIER,  # trained on the same pool
        phases.CLASSIFIER_REPEATS,  # further ones, where measure.trainings asks for them
        phases.LABEL,  # labels and groups of the generated images
        phases.GENERATED_CLASSIFIER,  # trained on generated images alone, for the CAS
        measure_phase.MEASURE,  # fairness, composition, fidelity
    ),
    check=setup.check,
    check_given=setup.check_given,
    open=setup.open_run,
    stages=lambda config: config.loop.generations,
    stage=setup.generation,
    summary=setup.summary,
    dry_run=dry_run.describe,
    begin=setup.write_previews,
    facts=setup.facts,
    scalars=setup.scalars,
    report=setup.report,
    remark=setup.remark,
    branch_source=branch.source_of,
    check_branch=branch.check,
    grows=("loop.generations",),
)
