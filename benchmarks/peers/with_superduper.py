"""superduper-framework on an SQLite file: a `Listener` on a filled table.

Timed: `apply`, which runs the listener to its end.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from time import perf_counter

import workload
from superduper import Listener, ObjectModel, superduper
from superduper.components.table import Table

FILE = Path("superduper.db").absolute()


def main() -> None:
    options = workload.parser().parse_args()
    db = superduper(f"sqlite:///{FILE}")  # sqlite://name.db fails: SQLAlchemy refuses it
    # Its output tables hold the source rows' keys as text, so that only tables with text keys can be joined with them.
    db.apply(Table("docs", fields={"id": "str", "text": "str"}, primary_id="id"), force=True)
    for chunk in workload.chunks(0, options.rows, options.keys, 10_000):
        db["docs"].insert([row | {"id": str(row["id"])} for row in chunk])

    model = ObjectModel("length", object=workload.length, datatype="int")
    listener = Listener("length", model=model, key="text", select=db["docs"].select())
    started = perf_counter()
    db.apply(listener, force=True)
    seconds = perf_counter() - started

    with closing(sqlite3.connect(FILE)) as connection:
        source = "CAST(_source AS INTEGER)" if options.keys == "int" else "_source"
        found = connection.execute(f'SELECT {source}, "{listener.outputs}" FROM "{listener.outputs}"')
        workload.finish(seconds=seconds, outputs=workload.summary(found))


if __name__ == "__main__":
    main()
