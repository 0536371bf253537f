"""Which running jobs are slow: CPU time by wall time and core, over a window."""

from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import timedelta

from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec, Limits
from khomas.scheduler.backends.interface import Usage
from khomas.scheduler.lifecycle.bounds import span

_WINDOW = timedelta(minutes=30)
_ANSWER_TIME = timedelta(hours=1)
# Looks that a window is made of; more would not judge better.
_PARTS = 32


@dataclass(frozen=True, slots=True)
class SlowPolicy:
    """What a spec says about slow jobs."""

    min_efficiency: float
    window: timedelta
    cores: float
    action: "Limits.SlowAction.ValueType"
    answer_time: timedelta

    @classmethod
    def of(cls, spec: JobSpec) -> "SlowPolicy | None":
        """The policy of a spec; None when it does not look at this."""
        limits = spec.limits
        if not limits.min_cpu_efficiency:
            return None
        return cls(
            limits.min_cpu_efficiency,
            (limits.HasField("efficiency_window") and span(limits.efficiency_window)) or _WINDOW,
            (spec.resources.cpu_milli or 1000) / 1000,
            limits.slow_action,
            span(limits.slow_answer_time) if limits.HasField("slow_answer_time") else _ANSWER_TIME,
        )

    @property
    def step(self) -> timedelta:
        """From one look to the next."""
        return self.window / _PARTS

    @property
    def notifies(self) -> bool:
        """Whether the owner is told."""
        return self.action in (Limits.SLOW_ACTION_NOTIFY, Limits.SLOW_ACTION_KILL)

    @property
    def kills(self) -> bool:
        """Whether it ends the job when nobody answers."""
        return self.action == Limits.SLOW_ACTION_KILL


@dataclass(slots=True)
class Window:
    """Usage of a running job over the last while: wall and CPU seconds, ascending."""

    policy: SlowPolicy
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, usage: Usage) -> None:
        """Take a look into account; looks that follow closely are left out."""
        length = self.policy.window.total_seconds()
        if self.wall and usage.wall_s < self.wall[-1] + self.policy.step.total_seconds():
            return
        self.wall.append(usage.wall_s)
        self.cpu.append(usage.cpu_user_s + usage.cpu_system_s)
        # One look that is as old as the window, or older, stays.
        old = max(0, bisect_right(self.wall, usage.wall_s - length) - 1)
        del self.wall[:old], self.cpu[:old]

    @property
    def efficiency(self) -> float | None:
        """CPU time by wall time and core; None while the window has not been seen whole."""
        if not self.wall or self.wall[-1] - self.wall[0] < self.policy.window.total_seconds():
            return None
        return (self.cpu[-1] - self.cpu[0]) / (self.wall[-1] - self.wall[0]) / self.policy.cores

    @property
    def slow(self) -> bool:
        """Whether it is below what its policy wants."""
        found = self.efficiency
        return found is not None and found < self.policy.min_efficiency

    @property
    def message(self) -> str:
        """Say so, with figures."""
        policy = self.policy
        return (
            f"used {self.efficiency or 0:.1%} of {policy.cores:g} cores over {self.wall[-1] - self.wall[0]:.0f} s, "
            f"{policy.min_efficiency:.1%} are wanted"
        )
