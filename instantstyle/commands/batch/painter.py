"""Rows become pictures: those of one kind in one call."""

from __future__ import annotations

from collections.abc import Sequence

from instantstyle.commands.batch.job import Job, reason
from instantstyle.inference.session import Painting


def paint(job: Job, numbers: Sequence[int]) -> list[Painting]:
    """Paint rows of one kind in one call."""
    return job.session.paint([job.requests[number] for number in numbers])


def attempt(job: Job, batch: Sequence[int], failed: dict[int, str]) -> None:
    """Make pictures together, or, where that fails, each alone, so that a bad row takes no other with it.

    Args:
        job: What the run is to do.
        batch: The numbers of the rows.
        failed: Takes the rows that fail, and why.

    Raises:
        OSError: A picture cannot be saved, and so no other could.
    """
    try:
        made = paint(job, batch)
    except Exception as error:  # whatever it is, the other rows shall be made
        failure = reason(error)  # and nothing else of it: its frames hold what a call took that ran out of memory
    else:
        for number, painting in zip(batch, made, strict=True):
            painting.save(job.folder / job.rows[number].name)
        return
    if len(batch) == 1:
        failed[batch[0]] = failure
        return
    for number in batch:
        attempt(job, [number], failed)
