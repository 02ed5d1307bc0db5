"""Which jobs may run beside each other in a process.

Of one component (a listener, mostly) as many as leave as much room for others. So there is room for a listener's job beside
however many jobs of another, whose model is slow or waits for its turn. It is the dynamic threshold of A. K. Choudhury and
E. L. Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998, with alpha = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asyncdl import codec
from asyncdl.jobs.planner import BACKFILL, REFRESH, TRAIN
from asyncdl.jobs.shards import Shard
from asyncdl.metadata.records import JobRecord

_LONG = 8
"""Long jobs at once, at most: each has batches in memory, and rows in the middle of being read."""
_FEW = 16
"""Rows that are read, and computed, as one batch."""


@dataclass(frozen=True, slots=True)
class Size:
    """What of a job says which others may run beside it.

    Parameters
    ----------
    target
        What it works for.
    long
        Whether it is more than a few rows of a listener.
    training
        Whether it trains a model.
    part
        The backfill of which it is a shard.
    """

    target: str
    long: bool = False
    training: bool = False
    part: str | None = None


def size_of(job: JobRecord) -> Size:
    """Return a job's size."""
    if job.kind not in {BACKFILL, REFRESH}:
        return Size(job.target, long=True, training=job.kind == TRAIN)
    payload = codec.loads(job.payload)
    if job.kind == REFRESH:
        return Size(job.target, long=len(payload["ids"]) > _FEW)
    shard = Shard.of_job(payload)
    return Size(job.target, long=True, part=None if shard is None else shard.of)


def may_run(job: Size, beside: Sequence[Size], concurrency: int) -> bool:
    """Return whether a job may run beside others, of which ``concurrency`` may at once."""
    if not _leaves_room(job.target, beside, concurrency):
        return False
    if not job.long:
        return True
    beside, concurrency = [each for each in beside if each.long], min(concurrency, _LONG)
    if not _leaves_room(job.target, beside, concurrency):
        return False
    if job.training and sum(each.training for each in beside) >= max(1, concurrency // 2):
        return False  # they take long, and others have work to do as well
    # Of a backfill in shards one at a time, so that other processes get theirs.
    return job.part is None or all(each.part != job.part for each in beside)


def full(beside: Sequence[Size], concurrency: int) -> list[str]:
    """Return the targets of which no more jobs may run, of whatever size."""
    return [each for each in {each.target for each in beside} if not _leaves_room(each, beside, concurrency)]


def _leaves_room(target: str, beside: Sequence[Size], room: int) -> bool:
    same, left = sum(each.target == target for each in beside), room - len(beside)
    return left > 0 and (same == 0 or same < left)
