"""What the entry point gives; the library behind it is needed by those alone who use it."""

from pydantic import ValidationError

from khomas.storage.protocols.interface import Access, Plugin, StorageProtocol
from khomas.storage.protocols.xrootd.settings import Place, XrootdSettings


def _open(access: Access) -> StorageProtocol:
    place = Place(access.address)
    try:
        settings = XrootdSettings.model_validate(dict(access.options))
    except ValidationError as error:
        wrong = "; ".join(f"option {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ValueError(wrong) from None
    try:
        from khomas.storage.protocols.xrootd.protocol import XrootdProtocol
    except ModuleNotFoundError as error:
        raise ValueError(f"root needs a library; install khomas-storage[xrootd] ({error})") from error
    return XrootdProtocol(place, settings, access.credential, durable=access.durable)


plugin = Plugin(open=_open)
