"""How fast asyncdl brings a listener up to date: beside a plain script, superduper and pixeltable, and by itself.

Run ``python benchmarks/backfill.py``. Each figure is a process of its own, all of them are interleaved, and repeated;
README.md in this folder says what is measured.
"""

import argparse
import sys
from pathlib import Path

import environments

BESIDE = ("straight", "ours", "superduper", "pixeltable")
ALONE = ("heartbeat", "scale", "live", "slow", "one-row")


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the comparison (%(default)s)")
    parser.add_argument("--sizes", default="10000,100000,1000000", help="rows of 'scale' and 'live' (%(default)s)")
    parser.add_argument("--keys", choices=("int", "text"), default="int", help="primary keys of the rows (%(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds (%(default)s)")
    parser.add_argument("--only", help=f"some of {','.join(BESIDE + ALONE)}")
    parser.add_argument("--no-peers", action="store_true", help="without superduper and pixeltable")
    parser.add_argument("--envs", type=Path, default=environments.default_folder(), help="environments (%(default)s)")
    chosen = parser.parse_args()
    chosen.names = chosen.only.split(",") if chosen.only else [*BESIDE, *ALONE]
    if unknown := set(chosen.names) - {*BESIDE, *ALONE}:
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; there are {', '.join(BESIDE + ALONE)}")
    if chosen.no_peers:
        chosen.names = [name for name in chosen.names if name not in environments.PEERS]
    chosen.sizes = [int(size) for size in chosen.sizes.split(",")]
    chosen.envs = chosen.envs.absolute()
    return chosen


def main() -> int:
    """Measure, and print the tables."""
    chosen = options()
    environments.ensure_own(chosen.envs)  # what follows imports rich

    from plan import planned
    from report import Results, print_tables

    results = Results()
    runs = planned(chosen)
    for turn in range(1, chosen.repeat + 1):
        for run in runs:
            results.add(run, turn)
    print_tables(results, chosen)
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
