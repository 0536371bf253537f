"""Makes the AccessGrants that callers get."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from google.protobuf.duration_pb2 import Duration

from khomas.api.storage.v1 import grant_pb2 as pb
from khomas.kit.errors import FieldInvalid
from khomas.storage.grants.grants import Grant, Right, Signer
from khomas.storage.protocols.interface import Remote

# Of the query of an address that is a grant itself.
IN_URL = "grant"


class Granting:
    """Knows where the door is and signs for it."""

    def __init__(self, signer: Signer, door: str, default: timedelta, maximum: timedelta) -> None:
        self._signer = signer
        self._door = door
        self._default = default
        self._maximum = maximum

    def end(self, lifetime: Duration | None, now: datetime) -> datetime:
        """Return when grants of this wanted lifetime end."""
        if lifetime is None or not lifetime.ByteSize():
            return now + self._default
        wanted = lifetime.ToTimedelta()
        if wanted <= timedelta(0):
            raise FieldInvalid.of("lifetime", "must be positive")
        return now + min(wanted, self._maximum)

    def upload(self, uid: str, element: str, local: Path | None, end: datetime) -> pb.AccessGrant:
        """Grant writing the files of an upload."""
        return self._grant(Grant(Right.WRITE, f"/uploads/{uid}/", _seconds(end)), element, local)

    def download(self, path: str, adler32: str, element: str, local: Path | None, end: datetime) -> pb.AccessGrant:
        """Grant reading one path of a StorageElement."""
        return self._grant(Grant(Right.READ, f"/files/{element}/{path}", _seconds(end), adler32), element, local)

    def download_in_url(self, path: str, adler32: str, element: str, end: datetime) -> pb.AccessGrant:
        """Grant reading one path to whoever has the address."""
        grant = Grant(Right.READ, f"/files/{element}/{path}", _seconds(end), adler32)
        signed = f"{self._door}{quote(grant.address)}?{IN_URL}={self._signer.token(grant)}"
        message = pb.AccessGrant(url=signed, storage_element=element)
        message.expire_time.FromDatetime(datetime.fromtimestamp(grant.expires_at, UTC))
        return message

    def lent(self, remote: Remote, element: str, end: datetime) -> pb.AccessGrant:
        """Pass on what a storage has given for reading one of its files."""
        message = pb.AccessGrant(url=remote.url, headers=dict(remote.headers), storage_element=element)
        message.expire_time.FromDatetime(end)
        return message

    def _grant(self, grant: Grant, element: str, local: Path | None) -> pb.AccessGrant:
        message = pb.AccessGrant(
            url=self._door + quote(grant.address),
            headers={"Authorization": f"Bearer {self._signer.token(grant)}"},
            storage_element=element,
            local_path=str(local) if local else "",
        )
        message.expire_time.FromDatetime(datetime.fromtimestamp(grant.expires_at, UTC))
        return message


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
