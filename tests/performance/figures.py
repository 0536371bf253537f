"""What a measurement gives: rounds of a ratio or a figure, with the goal that it is held against."""

import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Figure:
    """Rounds of one measurement; `goal` is a bound, "<=" or ">=" with its value, or empty."""

    name: str
    unit: str
    rounds: list[float] = field(default_factory=list)
    goal: str = ""

    @property
    def median(self) -> float:
        """The middle round, which is what a goal is held against."""
        return statistics.median(self.rounds)

    @property
    def reached(self) -> bool | None:
        """Whether the median keeps the goal; None without one."""
        if not self.goal:
            return None
        sign, _, bound = self.goal.partition(" ")
        return self.median <= float(bound) if sign == "<=" else self.median >= float(bound)

    def as_dict(self) -> dict[str, object]:
        """Return it for the report."""
        return {
            "name": self.name,
            "unit": self.unit,
            "min": min(self.rounds),
            "median": self.median,
            "max": max(self.rounds),
            "goal": self.goal,
            "reached": self.reached,
        }


async def compared(
    name: str,
    ours: Callable[[], Awaitable[float]],
    bare: Callable[[], Awaitable[float]],
    rounds: int,
    goal: str = "",
) -> Figure:
    """Measure two ways in turn, so that a drift of the machine meets both; both give seconds."""
    ratios = []
    for _ in range(rounds):
        mine = await ours()
        ratios.append(mine / await bare())
    return Figure(name, "x", ratios, goal)
