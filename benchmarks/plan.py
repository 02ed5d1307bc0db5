"""What is run in one round, in which order."""

import argparse

import environments
from measure import Run

ONE_ROW_INSERTS = 200
SLOW_ROWS = 10_000


def planned(chosen: argparse.Namespace) -> list[Run]:
    """Return the runs of one round."""
    return [run for name in chosen.names for run in _runs(name, chosen)]


def _runs(name: str, chosen: argparse.Namespace) -> list[Run]:
    def ours(mode: str, rows: int) -> Run:
        return Run(f"{name} {rows}", "ours.py", rows, chosen.keys, mode)

    match name:
        case "superduper" | "pixeltable":
            python = environments.environment(name, environments.PEERS[name], chosen.envs)
            return [Run(name, f"with_{name}.py", chosen.rows, chosen.keys, python=python)]
        case "straight":
            return [Run(name, "straight.py", chosen.rows, chosen.keys)]
        case "ours":
            return [Run(name, "ours.py", chosen.rows, chosen.keys, "backfill")]
        case "heartbeat":
            return [Run(name, "ours.py", chosen.rows, chosen.keys, "heartbeat")]
        case "scale":
            return [ours("backfill", size) for size in chosen.sizes]
        case "live":
            return [ours("live", size) for size in chosen.sizes]
        case "slow":
            return [Run(name, "ours.py", SLOW_ROWS, chosen.keys, "slow")]
        case _:
            return [Run(name, "ours.py", ONE_ROW_INSERTS, chosen.keys, "one-row")]
