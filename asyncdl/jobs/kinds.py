"""The kinds of job, and the work that each does."""

from __future__ import annotations

from collections.abc import Mapping

from asyncdl.errors import JobError
from asyncdl.jobs.calling import CallWork
from asyncdl.jobs.listening import ListenerWork
from asyncdl.jobs.materializing import MaterializingWork
from asyncdl.jobs.planner import BACKFILL, CALL, MATERIALIZE, RECOMPUTE, REFRESH, RETRAIN, TRAIN, VALIDATE
from asyncdl.jobs.retraining import RetrainingWork
from asyncdl.jobs.training import TrainingWork
from asyncdl.jobs.validating import ValidatingWork
from asyncdl.jobs.work import Stores, Work
from asyncdl.metadata.records import JobRecord

WORK: Mapping[str, type[Work]] = {
    BACKFILL: ListenerWork,
    REFRESH: ListenerWork,
    RECOMPUTE: ListenerWork,
    CALL: CallWork,
    TRAIN: TrainingWork,
    RETRAIN: RetrainingWork,
    MATERIALIZE: MaterializingWork,
    VALIDATE: ValidatingWork,
}


def work_of(stores: Stores, job: JobRecord, owner: str) -> Work:
    """Return an attempt of a job, to be run.

    Raises
    ------
    JobError
        Its kind is not known here: it was planned by a newer version of asyncdl.
    """
    kind = WORK.get(job.kind)
    if kind is None:
        raise JobError(f"job {job.id} is of the kind {job.kind!r}, which this version of asyncdl does not know")
    return kind(stores, job, owner)
