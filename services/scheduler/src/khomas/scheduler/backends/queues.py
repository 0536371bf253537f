"""Which queues take the jobs that name none."""

from collections.abc import Sequence
from dataclasses import replace

from khomas.scheduler.backends.interface import ComputeResource


def with_defaults(queues: Sequence[ComputeResource], names: Sequence[str]) -> list[ComputeResource]:
    """Mark those of these names; where none of them is told, the system chooses among all."""
    known = {one.queue for one in queues} & set(names)
    return [replace(one, is_default=not known or one.queue in known) for one in queues]
