"""Installs the programs of a test bed: Debian packages here, or in a chroot of the next release what this one lacks.

Needs root. Everything is made once and kept; locks keep sessions that run at the same time apart.
"""

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.testbeds import packages

SUITE = "trixie"
_POLICY = "#!/bin/sh\nexit 101\n"
_INSTALL = ("apt-get", "install", "--yes", "--quiet", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300")
_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
_MINUTES = 60.0


class NotInstallableError(Exception):
    """A program that a test bed needs cannot be installed here."""


def cache() -> Path:
    """The folder that is kept between runs."""
    folder = Path(os.environ.get("KHOMAS_TESTBEDS", "/var/cache/khomas-testbeds"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Keep other sessions out."""
    with (cache() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def debian(*names: str) -> None:
    """Install packages that are not there; their services stay stopped."""
    if not _missing(names, ()):
        return
    with locked("debian"):
        if _missing(names, ()):
            _install(names, (), Path("/"))


def trixie(*names: str) -> Path:
    """A chroot of Debian 13 with these packages; what a test keeps in a temporary folder has the same path inside."""
    root = cache() / SUITE
    debian(*packages.DEBOOTSTRAP)
    with locked(SUITE):
        if not (root / "etc/khomas-ready").exists():
            _bootstrap(root)
        _mount(root)
        # Packages make certificates for this host when they are installed, servers bind its name: they have to find it.
        shutil.copy("/etc/hosts", root / "etc/hosts")
        inside = ("chroot", str(root))
        if names and _missing(names, inside):
            _install(names, inside, root)
    return root


def everything() -> None:
    """Install what all test beds need, with one run of apt here and one in the chroot at the same time."""
    debian(*packages.DEBOOTSTRAP)
    with ThreadPoolExecutor(1) as pool:
        chroot = pool.submit(trixie, *packages.TRIXIE)
        debian(*packages.DEBIAN)
        chroot.result()


def _missing(names: Sequence[str], inside: Sequence[str]) -> list[str]:
    told = _run([*inside, "dpkg-query", "--show", "--showformat=${Package} ${db:Status-Abbrev}\n", *names], check=False)
    there = {line.split()[0] for line in told.splitlines() if line.endswith(("ii ", "ii"))}
    return [package for package in names if package not in there]


def _install(names: Sequence[str], inside: Sequence[str], root: Path) -> None:
    _need_root(names)
    with _no_services(root):
        try:
            _run([*inside, *_INSTALL, *names])
        except NotInstallableError:
            _run([*inside, "apt-get", "update", "--quiet"])
            _run([*inside, *_INSTALL, *names])


@contextmanager
def _no_services(root: Path) -> Iterator[None]:
    """Keep packages from starting what they bring."""
    policy = root / "usr/sbin/policy-rc.d"
    before = policy.read_text() if policy.exists() else None
    policy.write_text(_POLICY)
    policy.chmod(0o755)
    try:
        yield
    finally:
        if before is None:
            policy.unlink()
        else:
            policy.write_text(before)


def _bootstrap(root: Path) -> None:
    _need_root([SUITE])
    shutil.rmtree(root, ignore_errors=True)
    _run(["debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE, str(root), mirror()])
    for name in ("apt.conf", "apt.conf.d", "auth.conf.d"):
        _copy(Path("/etc/apt") / name, root / "etc/apt" / name)
    _copy(Path("/usr/local/share/ca-certificates"), root / "usr/local/share/ca-certificates")
    _run(["chroot", str(root), "update-ca-certificates"], check=False)
    (root / "etc/khomas-ready").write_text("")


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.exists():
        shutil.copy(source, target)


def mirror() -> str:
    """Where this machine gets its own packages from."""
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if path.exists():
            found = re.search(r"(?m)^(?:deb\s+(?:\[[^]]*\]\s+)?|URIs:\s*)(\S+/debian/?)(?:\s|$)", path.read_text())
            if found:
                return found.group(1)
    raise NotInstallableError("no mirror of Debian in this machine's apt sources")


def _mount(root: Path) -> None:
    """Give the chroot what programs expect, and the folders of tests under their own paths."""
    mounts = [("-t", "proc", "proc", "proc"), ("--rbind", "/dev", "dev"), ("--bind", "/tmp", "tmp")]
    mounted = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    for *what, where in mounts:
        if str(root / where) not in mounted:
            (root / where).mkdir(exist_ok=True)
            _run(["mount", *what, str(root / where)])


def _need_root(names: Sequence[str]) -> None:
    if os.geteuid() != 0:
        raise NotInstallableError(f"as root: apt-get install {' '.join(names)}")


def _run(argv: Sequence[str], *, check: bool = True) -> str:
    done = subprocess.run(
        argv,
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **_ENVIRONMENT},
        timeout=20 * _MINUTES,
    )
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).decode("utf-8", "replace")[-2000:]
        raise NotInstallableError(f"{' '.join(argv)}: {said}")
    return done.stdout.decode("utf-8", "replace")
