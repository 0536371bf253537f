"""Somebody who asks for files of the tree, in tests."""

from typing import Any

from yarl import URL

from khomas.storage.testing import Storage


class Client:
    """Somebody with some capabilities."""

    def __init__(self, storage: Storage, *capabilities: str) -> None:
        self.storage = storage
        self.door = storage.served.http["storage"]
        self.token = storage.served.token(capabilities)

    async def ask(self, method: str, path: str, data: bytes | None = None, /, **headers: str) -> tuple[int, bytes, Any]:
        """Ask for a path below the root of the StorageElement `local`, quoted as it is given."""
        sent = {"Authorization": f"Bearer {self.token}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        url = URL(f"{self.door}/dav/local/{path}", encoded=True)
        async with self.storage.http.request(method, url, data=data, headers=sent) as answer:
            return answer.status, await answer.read(), answer.headers

    async def status(self, method: str, path: str, data: bytes | None = None, /, **headers: str) -> int:
        """Ask, and return only the status."""
        return (await self.ask(method, path, data, **headers))[0]

    def address(self, path: str) -> str:
        """Return the address of a path."""
        return f"{self.door}/dav/local/{path}"
