"""What the entry point gives; the library behind it is needed by those alone who use it."""

from pydantic import ValidationError

from khomas.storage.protocols.interface import Access, Plugin, StorageProtocol
from khomas.storage.protocols.sftp.settings import Place, SftpSettings


def _open(access: Access) -> StorageProtocol:
    place = Place(access.address)
    try:
        settings = SftpSettings.model_validate(dict(access.options))
    except ValidationError as error:
        wrong = "; ".join(f"option {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ValueError(wrong) from None
    try:
        from khomas.storage.protocols.sftp.host import Host
        from khomas.storage.protocols.sftp.protocol import SftpProtocol
    except ModuleNotFoundError as error:
        raise ValueError(f"sftp needs a library; install khomas-storage[sftp] ({error})") from error
    return SftpProtocol(place, Host(place, settings, access.credential), settings, durable=access.durable)


plugin = Plugin(open=_open)
