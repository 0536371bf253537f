"""The credentials that backends are used with, and what they are too short for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from khomas.api.scheduler.v1 import credential_pb2 as pb
from khomas.kit.credentials import Credential, Credentials, KeeperSettings, What, rung

_STATES: Mapping[What, "pb.Credential.State.ValueType"] = {
    What.EXPIRING: pb.Credential.STATE_EXPIRING,
    What.EXPIRED: pb.Credential.STATE_EXPIRED,
    What.MISSING: pb.Credential.STATE_MISSING,
}


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a backend cannot be used now, or not for so long."""

    credential: str
    message: str
    # Command that changes it.
    remedy: str

    @property
    def said(self) -> str:
        """The whole sentence."""
        return f"{self.message}; renew it: {self.remedy}" if self.remedy else self.message


class Wallet:
    """The credentials of a scheduler."""

    def __init__(
        self, credentials: Credentials, keeper: KeeperSettings | None = None, margin: timedelta = timedelta()
    ) -> None:
        self.credentials = credentials
        self._ladder = (keeper or KeeperSettings()).warn_before
        self._margin = margin

    def lack(self, name: str, span: timedelta | None = None) -> Lack | None:
        """What is wrong with a credential: now, or for a job that runs so long."""
        known, now = self.credentials.known(name), datetime.now(UTC)
        if known.usable(now) and (span is None or known.covers(now, span, self._margin)):
            return None
        message = f"the credential {name} {_wrong(known, now, span or timedelta())}"
        since = self.credentials.since(name)
        if since is not None and not known.present:
            message += f", since {_written(since)}"
        return Lack(name, message, known.remedy)

    def messages(self, used_by: Mapping[str, Sequence[str]]) -> list[pb.Credential]:
        """All of them, with the backends that need each."""
        return [self.message(one.name, used_by.get(one.name, ())) for one in self.credentials]

    def message(self, name: str, used_by: Iterable[str] = ()) -> pb.Credential:
        """What is known of one."""
        known, now = self.credentials.known(name), datetime.now(UTC)
        at = rung(known, self._ladder, now)
        lack = self.lack(name)
        return pb.Credential(
            name=f"credentials/{name}",
            kind=self.credentials[name].kind,
            state=pb.Credential.STATE_VALID if at is None else _STATES[at.what],
            message=lack.message if lack is not None else "",
            remedy=known.remedy,
            subject=known.subject,
            can=known.can,
            not_before_time=known.not_before,  # type: ignore[arg-type]  # protobuf takes datetimes
            expire_time=known.expires,  # type: ignore[arg-type]
            renews=known.renews,
            renewable_until_time=known.renewable_until,  # type: ignore[arg-type]
            since=self.credentials.since(name),  # type: ignore[arg-type]
            used_by=[f"backends/{backend}" for backend in used_by],
        )

    def seconds_left(self) -> Iterator[tuple[float, Mapping[str, str]]]:
        """How long each lasts; those that last for ever are left out."""
        now = datetime.now(UTC)
        for one in self.credentials:
            left = self.credentials.known(one.name).left(now)
            if left is not None:
                yield left.total_seconds(), {"credential": one.name, "kind": one.kind}


def _wrong(known: Credential, now: datetime, span: timedelta) -> str:
    if not known.present:
        return f"cannot be used: {known.trouble}"
    if known.not_before is not None and known.not_before > now:
        return f"is not valid before {_written(known.not_before)}"
    if known.expires is not None and known.expires <= now:
        return f"expired at {_written(known.expires)}"
    until = known.renewable_until if known.renews and known.renewable_until else known.expires
    does = "can be renewed until" if known.renews and known.renewable_until else "expires at"
    what = f"before a wall time of {span} would end" if span else "too soon to hand over anything"
    return f"{does} {_written(until)}, {what}"


def _written(moment: datetime | None) -> str:
    return "an unknown time" if moment is None else moment.isoformat(timespec="seconds")
