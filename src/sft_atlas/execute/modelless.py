"""Do the jobs that load no model: grade stored answers, look at texts, compare stored weights."""

from contextlib import nullcontext

from sft_atlas.data.selection import item_texts, selected_examples, selected_texts
from sft_atlas.errors import Error
from sft_atlas.execute.placement import Placement
from sft_atlas.grade.grade import grade_cell
from sft_atlas.measure.description import describe_dataset
from sft_atlas.measure.overlap import measure_overlap
from sft_atlas.measure.updates import measure_updates
from sft_atlas.model.load import resolve_folder
from sft_atlas.store.store import Store
from sft_atlas.study.job import DescribeJob, GradeJob, OverlapJob, UpdatesJob
from sft_atlas.train.loop import StopRequested


def grade(store: Store, job: GradeJob, placement: Placement) -> None:
    """Score all stored answers that can be scored; then raise the first error, if there was one."""
    faults: list[Error] = []
    for benchmark in job.benchmarks:
        # One process asks a judge at a time: another's open requests would look like money spent.
        is_judged = benchmark.definition.kind == "judge"
        with store.lease("judge") if is_judged else nullcontext(True) as mine:
            if not mine:
                raise StopRequested("another process asks the judge")
            try:
                grade_cell(
                    store,
                    cell=job.cell,
                    benchmark=benchmark,
                    endpoint=placement.judge,
                )
            except Error as error:
                faults.append(error)
    if faults:
        raise faults[0]


def look_for_overlap(store: Store, job: OverlapJob) -> None:
    """Publish which training rows of a dataset hold a benchmark's items."""
    measure_overlap(
        store,
        job,
        rows=selected_texts(job.dataset, num_samples=job.num_samples, subset_seed=job.subset_seed),
        items=item_texts(job.benchmark),
    )


def describe(store: Store, job: DescribeJob) -> None:
    """Publish what a dataset's training rows are like as texts."""
    describe_dataset(
        store,
        job,
        examples=selected_examples(
            job.dataset, num_samples=job.num_samples, subset_seed=job.subset_seed
        ),
    )


def compare_updates(store: Store, job: UpdatesJob) -> None:
    """Publish the cosines between the weight changes of a base model's cells."""
    measure_updates(store, job, base_folder=resolve_folder(job.model))
