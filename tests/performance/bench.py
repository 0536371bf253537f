#!/usr/bin/env python3
"""All measurements, as ratios taken in one run: prints a table and writes bench-report.json."""

import argparse
import asyncio
import json
import os
import platform
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.performance import (
    backends,
    catalog,
    client,
    idle,
    jobs,
    moving,
    pilots,
    reconciling,
    scheduler,
    transfers,
    waiting,
    wire,
    wrapper,
)
from tests.performance.figures import Figure

_GIB = 2**30
_VERSIONS = ("grpcio", "protobuf", "SQLAlchemy", "aiosqlite", "asyncpg", "protovalidate")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        choices=[
            "catalog",
            "wire",
            "jobs",
            "scheduler",
            "backends",
            "queue",
            "client",
            "idle",
            "pilots",
            "reconciling",
            "transfers",
            "moving",
            "wrapper",
        ],
        help="one part",
    )
    parser.add_argument("--quick", action="store_true", help="two rounds, small files")
    parser.add_argument("--report", type=Path, default=Path("bench-report.json"))
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else 7
    size_bytes = _GIB // 8 if arguments.quick else 2 * _GIB
    parts: dict[str, Callable[[], Awaitable[list[Figure]]]] = {
        "catalog": lambda: catalog.measure(rounds),
        "wire": lambda: wire.measure(rounds),
        "jobs": lambda: jobs.measure(min(rounds, 5)),
        "scheduler": lambda: scheduler.measure(min(rounds, 5)),
        "backends": lambda: backends.measure(min(rounds, 3)),
        "queue": waiting.measure,
        "client": lambda: client.measure(rounds, size_bytes),
        "idle": idle.measure,
        "pilots": lambda: pilots.measure(1),
        "reconciling": lambda: reconciling.measure(10_000 if arguments.quick else 100_000),
        "transfers": transfers.measure,
        "wrapper": lambda: wrapper.measure(rounds),
        "moving": lambda: moving.measure(100 if arguments.quick else 1000, size_bytes, min(rounds, 3)),
    }
    figures = []
    for name, part in parts.items():
        if arguments.only in (None, name):
            print(f"measuring: {name} …", file=sys.stderr, flush=True)
            figures += asyncio.run(_awaited(part))
    _show(figures)
    arguments.report.write_text(json.dumps(_report(figures), indent=2) + "\n")
    print(f"written: {arguments.report}")


async def _awaited(part: Callable[[], Awaitable[list[Figure]]]) -> list[Figure]:
    return await part()


def _show(figures: list[Figure]) -> None:
    width = max(len(figure.name) for figure in figures)
    print(f"{'':{width}}  {'min':>10}  {'median':>10}  {'max':>10}  unit     goal")
    for figure in figures:
        low, middle, high = min(figure.rounds), figure.median, max(figure.rounds)
        mark = {True: "reached", False: "missed", None: ""}[figure.reached]
        print(
            f"{figure.name:{width}}  {low:>10,.4g}  {middle:>10,.4g}  {high:>10,.4g}  {figure.unit:8} "
            f"{figure.goal} {mark}".rstrip()
        )


def _report(figures: list[Figure]) -> dict[str, object]:
    return {
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "processor": platform.machine()},
        "versions": {
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            **{name: version(name) for name in _VERSIONS},
        },
        "figures": [figure.as_dict() for figure in figures],
    }


if __name__ == "__main__":
    main()
