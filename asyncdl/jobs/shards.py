"""Shards: a large backfill becomes several jobs, each for a range of keys, which several workers run at once.

A cursor counts those that have succeeded, in the commit of each success: so the last one is one, whoever it is, and it alone
concludes the backfill.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from asyncdl import codec
from asyncdl.databackend.tables import Row
from asyncdl.metadata.base import MetadataStore
from asyncdl.metadata.changes import Change, DeleteCursor, MoveCursor, PutJob
from asyncdl.metadata.records import JobRecord


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a backfill.

    Parameters
    ----------
    of
        The job that was split.
    count
        How many shards it has.
    after, until
        The keys between which its rows are, without the first and with the last; None: from the start, to the end.
    """

    of: str
    count: int
    after: Row | None
    until: Row | None

    @classmethod
    def of_job(cls, arguments: dict[str, Any]) -> Shard | None:
        """Return the shard that a job's arguments describe, None where it is whole."""
        found = arguments.get("shard")
        if found is None:
            return None
        after, until = (None if key is None else tuple(key) for key in (found["after"], found["until"]))
        return cls(found["of"], found["count"], after, until)

    @property
    def _cursor(self) -> str:
        return f"shards:{self.of}"

    async def succeeded(self, metadata: MetadataStore) -> tuple[list[Change], bool]:
        """Return the changes that count this shard's success, and whether it is the last.

        Their condition is that no other was counted since: on a conflict ask again.
        """
        before = await metadata.cursor(self._cursor) or 0
        counted: list[Change] = [MoveCursor(self._cursor, before + 1, expected=before)]
        if before + 1 < self.count:
            return counted, False
        return [*counted, DeleteCursor(self._cursor)], True


def split(job: JobRecord, boundaries: Sequence[Row], size: int, total: int, now: float) -> list[PutJob]:
    """Return the changes that make shards of a job."""
    arguments = codec.loads(job.payload)
    edges: list[Row | None] = [None, *boundaries[: (total - 1) // size], None]
    changes: list[PutJob] = []
    for at, (after, until) in enumerate(itertools.pairwise(edges)):
        shard = {"of": job.id, "count": len(edges) - 1, "after": after, "until": until}
        rows = size if until is not None else max(total - at * size, 0)
        record = replace(
            job,
            id=uuid.uuid4().hex,
            payload=codec.dumps({**arguments, "shard": shard}).decode(),
            created=now,
            state="pending",
            attempts=0,
            owner=None,
            lease=0.0,
            done=0,
            total=rows,
            stage="",
            error=None,
            started=None,
        )
        changes.append(PutJob(record))
    return changes
