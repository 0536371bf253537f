"""Tools that people move files with today, to the same storages: curl, rclone, xrdcp, cp."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.testbeds import s3
from tests.testbeds.storages import Store

Peer = Callable[[Sequence[Path], Store, Path], float]
_AT_ONCE = "8"


def peers_of(store: Store) -> Mapping[str, Peer]:
    """Return who can bring files there, by name; each takes files and a folder for what it needs, and gives seconds."""
    by_protocol: dict[str, dict[str, Peer]] = {
        "posix": {},
        "davs": {
            "curl, not verified": _curl,
            "rclone": partial(_rclone_webdav, {}),
            "rclone, no pauses and not verified": partial(_rclone_webdav, {"PACER_MIN_SLEEP": "0"}),
        },
        "root": {"xrdcp --cksum": _xrdcp},
        "sftp": {
            "rclone": partial(_rclone_sftp, {}),
            "rclone, not verified": partial(_rclone_sftp, {"DISABLE_HASHCHECK": "true"}),
        },
        "s3": {"rclone": _rclone_s3},
    }
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return {
        name: peer
        for name, peer in by_protocol[store.protocol].items()
        if shutil.which(name.split()[0].strip(","), path=path)
    }


def forget(store: Store, ours: Collection[str]) -> None:
    """Delete what they have brought, where that takes room of the next one."""
    if store.folder is None:
        return
    for left in store.folder.iterdir():
        if left.name in ours or left.name.startswith("."):
            continue
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def _timed(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> float:
    begin = time.perf_counter()
    done = subprocess.run(
        [*map(str, command)], env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-500:]}")
    return time.perf_counter() - begin


def cp(paths: Sequence[Path], _: Store, folder: Path) -> float:
    """Copy them to a folder beside them."""
    target = folder / "bare"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    return _timed(["cp", *paths, target])


def _curl(paths: Sequence[Path], store: Store, _: Path) -> float:
    """Put files over some connections at once, as one who knows curl does."""
    assert store.web is not None
    trust = ["--capath" if store.web.authorities.is_dir() else "--cacert", str(store.web.authorities)]
    common = ["curl", "--silent", "--fail", "--no-progress-meter", "--parallel", "--parallel-max", _AT_ONCE, *trust]
    header = f"Authorization: Bearer {store.web.token.read_text().strip()}"
    address = f"{store.address.replace('davs', 'https', 1)}/"
    files = [part for path in paths for part in ("--upload-file", str(path), f"{address}{path.name}.curl")]
    return _timed([*common, "--header", header, *files])


def _xrdcp(paths: Sequence[Path], store: Store, _: Path) -> float:
    """Copy with as many at once as it allows, and have the server tell the checksum."""
    parts = urlsplit(store.address)
    token = Path(store.credential["options"]["file"]).read_text().strip()
    # Without TLS it sends a token only as a part of the address.
    there = f"root://{parts.netloc}//{parts.path.lstrip('/')}/"
    target = f"{there}{paths[0].name}.xrdcp" if len(paths) == 1 else there
    common = ["xrdcp", "--force", "--nopbar", "--parallel", "4", "--cksum", "adler32:source"]
    return _timed([*common, *paths, f"{target}?authz=Bearer%20{token}"])


def _rclone_webdav(more: Mapping[str, str], paths: Sequence[Path], store: Store, folder: Path) -> float:
    assert store.web is not None
    authorities = folder / "authorities.pem"
    trusted = store.web.authorities
    files = sorted(trusted.glob("*.[0-9p]*")) if trusted.is_dir() else [trusted]
    authorities.write_text("".join(one.read_text() for one in files))
    token = store.web.token.read_text().strip()
    remote = {"TYPE": "webdav", "VENDOR": "other", "BEARER_TOKEN": token, **more}
    remote["URL"] = store.address.replace("davs", "https", 1)
    return _rclone(paths, remote, "", folder, "--ca-cert", str(authorities))


def _rclone_sftp(more: Mapping[str, str], paths: Sequence[Path], store: Store, folder: Path) -> float:
    parts = urlsplit(store.address)
    key = store.credential["options"]["key"]
    remote = {"TYPE": "sftp", "HOST": str(parts.hostname), "PORT": str(parts.port), "USER": str(parts.username)}
    remote |= {"KEY_FILE": key, "KNOWN_HOSTS_FILE": store.options["known_hosts"], **more}
    return _rclone(paths, remote, unquote(parts.path), folder)


def _rclone_s3(paths: Sequence[Path], store: Store, folder: Path) -> float:
    parts = urlsplit(store.address)
    remote = {"TYPE": "s3", "PROVIDER": "Rclone", "ENDPOINT": f"http://{parts.netloc}"}
    remote |= {"ACCESS_KEY_ID": s3.ACCESS_KEY, "SECRET_ACCESS_KEY": s3.SECRET_KEY, "FORCE_PATH_STYLE": "true"}
    return _rclone(paths, remote, parts.path.lstrip("/"), folder)


def _rclone(paths: Sequence[Path], remote: Mapping[str, str], root: str, folder: Path, *options: str) -> float:
    """Copy with its own checks, and with as many files at once as we have streams."""
    names: Path = folder / "names"
    names.write_text("".join(f"{path.name}\n" for path in paths))
    env = {f"RCLONE_CONFIG_THERE_{key}": value for key, value in remote.items()}
    program = Path(sys.executable).with_name("rclone")
    common: list[str | Path] = [
        "copy",
        "--transfers",
        _AT_ONCE,
        "--checkers",
        _AT_ONCE,
        "--files-from",
        names,
        "--config",
        "/dev/null",
    ]
    return _timed([program, *common, *options, paths[0].parent, f"there:{root}/rclone"], env)
