"""`sftp` against a real sshd, and against a server that knows fewer extensions."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote
from uuid import uuid4

import asyncssh
import pytest

from khomas.kit.credentials.ssh import SshKey, SshOptions
from khomas.storage.conformance import (
    MIB,
    CredentialConformance,
    ProtocolConformance,
    ServerConformance,
    read,
    write,
)
from khomas.storage.conformance.content import blocks, content, listed, look, problems
from khomas.storage.landing import Landings, Wanted
from khomas.storage.protocols.interface import Access, Entry, Kind, Problem, ProtocolFault, StorageProtocol
from khomas.storage.protocols.sftp.plugin import plugin
from tests.backends.conftest import shared_folder
from tests.testbeds import disks
from tests.testbeds import ssh as ssh_bed
from tests.testbeds.processes import until
from tests.testbeds.ssh import Ssh


@pytest.fixture(scope="module")
def server() -> Iterator[Ssh]:
    """An sshd; whoever stops it starts it again."""
    with ssh_bed.running(shared_folder("sftp")) as running:
        yield running


@pytest.fixture
def folder(server: Ssh) -> Iterator[Path]:
    """A folder of the user, of which the name must be quoted in an address."""
    folder = server.folder / f"a b%20ä-{uuid4().hex}"
    folder.mkdir()
    _give(folder, server)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def protocol(server: Ssh, folder: Path) -> AsyncIterator[StorageProtocol]:
    protocol = opened(server, folder)
    yield protocol
    await protocol.close()


def opened(
    server: Ssh, folder: Path, *, key: Path | None = None, certificate: Path | None = None, **options: str
) -> StorageProtocol:
    """Open a folder of a server."""
    credential = SshKey("test", SshOptions(key=key or server.key, certificate=certificate))
    options = {"known_hosts": str(server.known_hosts), "idle_seconds": "20"} | options
    return plugin.open(Access(_address(server, folder), credential=credential, options=options))


def _address(server: Ssh, folder: Path) -> str:
    return f"sftp://{server.address}{quote(str(folder))}"


def _give(folder: Path, server: Ssh) -> None:
    os.chown(folder, server.user.pw_uid, server.user.pw_gid)


def _key(path: Path) -> Path:
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path)
    return path


def _run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=30)


async def _unable(protocol: StorageProtocol) -> ProtocolFault:
    """Tell why nothing works, which every call says alike."""
    assert len(set(problems([*await protocol.stat(["a", "b"]), *await protocol.delete(["a"])]))) == 1
    with pytest.raises(ProtocolFault) as caught:
        await protocol.space()
    await protocol.close()
    return caught.value


def _sessions(server: Ssh) -> list[int]:
    """Tell the processes that answer: below the two of each connection."""
    assert server.server is not None
    found = [server.server.pid]
    for _ in range(3):
        found = [child for pid in found for child in _below(pid)]
    return found


def _below(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class _Small(asyncssh.SFTPServer):
    """Knows no extension, and renames over what is there, as some servers do."""

    def link(self, oldpath: bytes, newpath: bytes) -> NoReturn:
        raise asyncssh.SFTPOpUnsupported("no links")

    def statvfs(self, path: bytes) -> NoReturn:
        raise asyncssh.SFTPOpUnsupported("no space")

    def fsync(self, file_obj: object) -> NoReturn:
        raise asyncssh.SFTPOpUnsupported("no flush")

    def rename(self, oldpath: bytes, newpath: bytes) -> None:
        Path(os.fsdecode(self.map_path(oldpath))).replace(os.fsdecode(self.map_path(newpath)))


@asynccontextmanager
async def _small_server(folder: Path) -> AsyncIterator[StorageProtocol]:
    keys = [await asyncio.to_thread(_key, folder / name) for name in ("key", "host")]
    (folder / "data").mkdir()
    listening = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[str(keys[1])],
        authorized_client_keys=f"{keys[0]}.pub",
        sftp_factory=lambda channel: _Small(channel, chroot=bytes(folder / "data")),
    )
    async with listening:
        port = listening.get_port()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
        options = {"known_hosts": str(folder / "known_hosts"), "key": str(keys[0])}
        protocol = plugin.open(Access(f"sftp://somebody@127.0.0.1:{port}/", durable=True, options=options))
        yield protocol
        await protocol.close()


class TestSshd(ProtocolConformance, ServerConformance, CredentialConformance):
    """OpenSSH keeps the contract."""

    @pytest.fixture
    def disk(self, folder: Path) -> Path:
        return folder

    @pytest.fixture
    async def full(self, server: Ssh, folder: Path) -> AsyncIterator[StorageProtocol]:
        with disks.memory(folder / "small", 4 * MIB) as small:
            _give(small, server)
            protocol = opened(server, small)
            yield protocol
            await protocol.close()

    @pytest.fixture
    async def forbidden(self, server: Ssh, folder: Path) -> AsyncIterator[StorageProtocol]:
        (folder / "file").write_bytes(b"abc")
        _give(folder / "file", server)
        with disks.read_only(folder):
            protocol = opened(server, folder)
            yield protocol
            await protocol.close()

    @pytest.fixture
    async def expired(self, server: Ssh, folder: Path, tmp_path: Path) -> AsyncIterator[StorageProtocol]:
        key = _key(tmp_path / "key")
        authority = _key(tmp_path / "authority")
        _run("ssh-keygen", "-q", "-s", authority, "-I", "test", "-V", "-2h:-1h", tmp_path / "key.pub")
        protocol = opened(server, folder, key=key, certificate=tmp_path / "key-cert.pub")
        yield protocol
        await protocol.close()

    async def test_disk_that_runs_full_on_the_way_is_told(self, full: StorageProtocol, folder: Path) -> None:
        async with await Landings().begin(full) as landing:
            # Another one fills it after we have looked.
            (folder / "small/other").write_bytes(bytes(3 * MIB))
            with pytest.raises(ProtocolFault) as caught:
                await full.put(landing.hidden, blocks(bytes(2 * MIB)), 0)
        assert caught.value.problem is Problem.FULL, caught.value.message

    async def test_one_alone_gets_a_name(self, protocol: StorageProtocol) -> None:
        names = [f"from{number}" for number in range(20)]
        for name in names:
            await protocol.put(name, blocks(name.encode()), len(name))
        done = await protocol.rename([(name, "file") for name in names])
        won = [name for name, fault in zip(names, done, strict=True) if fault is None]
        assert problems(done).count(Problem.TAKEN) == len(names) - 1
        assert [(await read(protocol, "file")).decode()] == won

    async def test_durable_files_work_alike(self, server: Ssh, folder: Path) -> None:
        options = {"known_hosts": str(server.known_hosts), "key": str(server.key)}
        protocol = plugin.open(Access(_address(server, folder), durable=True, options=options))
        async with await Landings().begin(protocol) as landing:
            await landing.take(blocks(b"abc"), Wanted(3, ""))
            await landing.publish("folder/file")
        assert (folder / "folder/file").read_bytes() == b"abc"
        await protocol.close()

    async def test_writing_where_there_is_something_overwrites_nothing(self, protocol: StorageProtocol) -> None:
        await write(protocol, "file", b"first")
        with pytest.raises(ProtocolFault) as caught:
            await protocol.put("file", blocks(b"second"), 6)
        assert caught.value.problem is Problem.TAKEN
        assert await read(protocol, "file") == b"first"


class TestPlaces:
    """What else may be on a disk."""

    async def test_links_are_what_they_lead_to(self, protocol: StorageProtocol, folder: Path) -> None:
        (folder / "file").write_bytes(b"abc")
        (folder / "folder").mkdir()
        for name, target in {"to file": "file", "to folder": "folder", "nowhere": "nothing"}.items():
            (folder / name).symlink_to(target)
        found = {entry.path: (entry.kind, entry.size_bytes) for entry in await listed(protocol, "")}
        assert found["to file"] == (Kind.FILE, 3)
        assert found["to folder"] == (Kind.FOLDER, 0)
        assert found["nowhere"] == (Kind.OTHER, 0)

    async def test_pipe_blocks_nobody(self, protocol: StorageProtocol, folder: Path) -> None:
        os.mkfifo(folder / "pipe")
        with pytest.raises(ProtocolFault) as caught:
            await read(protocol, "pipe")
        assert caught.value.problem is Problem.REFUSED
        assert problems(await protocol.stat(["pipe"])) == [None]

    async def test_root_that_is_not_mounted_has_lost_no_files(self, protocol: StorageProtocol, folder: Path) -> None:
        await write(protocol, "file", b"abc")
        away = folder.with_name(f"{folder.name}-away")
        folder.rename(away)  # noqa: ASYNC240
        try:
            assert problems(await protocol.stat(["file"])) == [Problem.UNREACHABLE]
            assert problems(await protocol.delete(["file"])) == [Problem.UNREACHABLE]
            assert problems(await protocol.make_folders(["a/b"])) == [Problem.UNREACHABLE]
            for asking in (protocol.space(), read(protocol, "file"), listed(protocol, "")):
                with pytest.raises(ProtocolFault) as caught:
                    await asking
                assert caught.value.problem is Problem.UNREACHABLE
            # Nobody has made it anew.
            away.rename(folder)
        finally:
            if away.exists():
                shutil.rmtree(away)
        assert await read(protocol, "file") == b"abc"

    async def test_folder_of_somebody_else_is_refused(self, protocol: StorageProtocol, folder: Path) -> None:
        (folder / "other").mkdir()
        (folder / "other/file").write_bytes(b"abc")
        with pytest.raises(ProtocolFault) as caught:
            await protocol.put("other/new", blocks(b"x"), 1)
        assert caught.value.problem is Problem.REFUSED
        assert problems(await protocol.delete(["other/file"])) == [Problem.REFUSED]
        assert problems(await protocol.rename([("other/file", "mine")])) == [Problem.REFUSED]
        assert problems(await protocol.make_folders(["other/folder", "other"])) == [Problem.REFUSED, None]


class TestTrust:
    """Whom we believe, and who believes us."""

    @pytest.fixture
    def agent(self, server: Ssh) -> Iterator[Path]:
        # The path of a socket must be short.
        socket = server.folder / "agent"
        with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL) as agent:
            try:
                until(socket.exists, 30, "ssh-agent")
                environment = os.environ | {"SSH_AUTH_SOCK": str(socket)}
                subprocess.run(["ssh-add", "-q", server.key], check=True, timeout=30, env=environment)
                yield socket
            finally:
                agent.terminate()

    async def test_server_with_a_key_that_nobody_knows_is_refused(
        self, server: Ssh, folder: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "known_hosts").touch()
        fault = await _unable(opened(server, folder, known_hosts=str(tmp_path / "known_hosts")))
        assert fault.problem is Problem.CONFIGURATION
        assert f"ssh-keyscan -p {server.port} 127.0.0.1" in fault.message

    async def test_server_with_another_key_is_refused(self, server: Ssh, folder: Path, tmp_path: Path) -> None:
        other = _key(tmp_path / "other").with_suffix(".pub").read_text()
        (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {other}")
        fault = await _unable(opened(server, folder, known_hosts=str(tmp_path / "known_hosts")))
        assert fault.problem is Problem.CONFIGURATION

    async def test_missing_list_of_servers_is_told(self, server: Ssh, folder: Path) -> None:
        fault = await _unable(opened(server, folder, known_hosts="/nowhere"))
        assert (fault.problem, "/nowhere" in fault.message) == (Problem.CONFIGURATION, True)

    async def test_key_that_the_server_does_not_know_is_no_credential(
        self, server: Ssh, folder: Path, tmp_path: Path
    ) -> None:
        fault = await _unable(opened(server, folder, key=_key(tmp_path / "other")))
        assert fault.problem is Problem.CREDENTIAL

    async def test_missing_key_is_no_credential(self, server: Ssh, folder: Path, tmp_path: Path) -> None:
        fault = await _unable(opened(server, folder, key=tmp_path / "nothing"))
        assert fault.problem is Problem.CREDENTIAL

    async def test_certificate_lets_in(self, server: Ssh, folder: Path, tmp_path: Path) -> None:
        key, authority = _key(tmp_path / "key"), _key(tmp_path / "authority")
        allowed = server.folder / "authorized_keys"
        before = allowed.read_text()
        allowed.write_text(f"{before}cert-authority {authority.with_suffix('.pub').read_text()}")
        _run("ssh-keygen", "-q", "-s", authority, "-I", "test", "-n", server.user.pw_name, "-V", "+1h", f"{key}.pub")
        protocol = opened(server, folder, key=key, certificate=tmp_path / "key-cert.pub")
        try:
            await write(protocol, "file", b"abc")
        finally:
            allowed.write_text(before)
            await protocol.close()
        assert (folder / "file").read_bytes() == b"abc"

    async def test_agent_lets_in(self, server: Ssh, folder: Path, agent: Path) -> None:
        credential = SshKey("test", SshOptions(agent=agent))
        options = {"known_hosts": str(server.known_hosts)}
        protocol = plugin.open(Access(_address(server, folder), credential=credential, options=options))
        await write(protocol, "file", b"abc")
        await protocol.close()
        assert (folder / "file").read_bytes() == b"abc"

    async def test_key_of_the_options_lets_in(self, server: Ssh, folder: Path) -> None:
        options = {"known_hosts": str(server.known_hosts), "key": str(server.key)}
        protocol = plugin.open(Access(f"sftp://{server.address}/", options=options))
        path = str(folder.relative_to("/") / "file")
        await protocol.put(path, blocks(b"abc"), 3)
        assert await read(protocol, path) == b"abc"
        await protocol.close()

    @pytest.mark.parametrize(
        ("address", "options"),
        [
            ("ssh://host/path", {}),
            ("sftp:///path", {}),
            ("sftp://user:secret@host/path", {}),
            ("sftp://host/a/../b", {}),
            ("sftp://host:port/", {}),
            ("sftp://host/", {"sessions": "1"}),
            ("sftp://host/", {"unknown": "1"}),
        ],
    )
    def test_wrong_address_or_option_is_told_at_once(self, address: str, options: dict[str, str]) -> None:
        with pytest.raises(ValueError, match=r"address|option|[Pp]ort") as caught:
            plugin.open(Access(address, options=options))
        assert "secret" not in str(caught.value)


class TestConnection:
    """One for everything."""

    async def test_few_sessions_over_one_connection_are_enough(self) -> None:
        with ssh_bed.running(shared_folder("few"), sessions=2) as server:
            (data := server.folder / "data").mkdir()
            _give(data, server)
            protocol = opened(server, data)
            await asyncio.gather(*(write(protocol, f"file{number}", content(MIB)) for number in range(20)))
            found = await asyncio.gather(*(read(protocol, f"file{number}") for number in range(20)))
            assert found == [content(MIB)] * 20
            assert server.server is not None
            assert (len(_below(server.server.pid)), len(_sessions(server))) == (1, 2)
            await protocol.close()

    async def test_server_that_answers_no_more_is_told(self, server: Ssh, folder: Path) -> None:
        protocol = opened(server, folder, seconds="2", idle_seconds="2", connect_seconds="2")
        await write(protocol, "file", content(32 * MIB))
        async with aclosing(protocol.get("file")) as reading:
            await anext(reading)
            server.freeze()
            try:
                with pytest.raises(ProtocolFault) as caught:
                    async for _ in reading:
                        pass
                assert caught.value.problem is Problem.PASSING
                assert problems(await protocol.stat(["file"])) == [Problem.PASSING]
            finally:
                server.thaw()
        assert await read(protocol, "file") == content(32 * MIB)
        await protocol.close()

    async def test_server_that_lets_nobody_in_is_asked_once_for_all(self, server: Ssh) -> None:
        met: list[asyncio.StreamWriter] = []

        def meet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            met.append(writer)
            writer.close()

        async with await asyncio.start_server(meet, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            options = {"known_hosts": str(server.known_hosts), "key": str(server.key)}
            protocol = plugin.open(Access(f"sftp://somebody@127.0.0.1:{port}/", options=options))
            assert problems(await protocol.stat(["file"] * 50)) == [Problem.UNREACHABLE] * 50
            assert len(met) == 1
            with pytest.raises(ProtocolFault) as caught:
                await protocol.space()
            assert (caught.value.problem, len(met)) == (Problem.UNREACHABLE, 2)
            await protocol.close()

    async def test_session_that_ended_is_opened_again(
        self, server: Ssh, protocol: StorageProtocol, folder: Path
    ) -> None:
        await write(protocol, "file", b"abc")
        ended = _sessions(server)
        assert ended
        for pid in ended:
            os.kill(pid, signal.SIGKILL)
        assert problems(await protocol.stat(["file"] * 20)) == [None] * 20

    async def test_whoever_goes_away_while_it_is_opened_leaves_it_to_others(self, protocol: StorageProtocol) -> None:
        for _ in range(5):
            asking = asyncio.ensure_future(protocol.stat(["file"]))
            await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.wait([asking])
        assert problems(await protocol.stat(["file"])) == [Problem.ABSENT]


class TestOtherServer:
    """A server that has neither links nor a flush nor the space of its disk, and renames over what is there."""

    async def test_names_are_taken_all_the_same(self, tmp_path: Path) -> None:
        async with _small_server(tmp_path) as protocol:
            await write(protocol, "folder/file", content(3 * MIB))
            with pytest.raises(ProtocolFault) as caught:
                await write(protocol, "folder/file", b"second")
            assert caught.value.problem is Problem.TAKEN
            assert await read(protocol, "folder/file") == content(3 * MIB)
            entry = await look(protocol, "folder/file")
            assert isinstance(entry, Entry)
            assert entry.size_bytes == 3 * MIB
            assert (await protocol.space()).free_bytes is None
