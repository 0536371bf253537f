"""Builds a real API server and its controllers from Debian's source of Kubernetes, once, in some minutes."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.testbeds import install
from tests.testbeds.install import NotInstallableError, cache, locked

# Debian's source has the name of a newer version than it is.
VERSION = "1.20.2"
PROGRAMS = ("kube-apiserver", "kube-controller-manager")
_GO = Path("/usr/lib/go-1.19/bin")
_PACKAGES = ("golang-1.19-go", "dpkg-dev", "etcd-server")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_MINUTES = 60.0
_OPENAPI = "pkg/generated/openapi"
_MARK = re.compile(r"^// ?\+k8s:openapi-gen=", re.MULTILINE)


def programs() -> Path:
    """The folder of the programs; they are built when they are not there yet."""
    install.debian(*_PACKAGES)
    done = cache() / f"kubernetes-{VERSION}"
    if not done.exists():
        with locked("kubernetes"):
            if not done.exists():
                _make(done)
    return done


def _make(done: Path) -> None:
    """Build beside, then put everything in its place at once."""
    work = done.with_name(f".{done.name}.building")
    shutil.rmtree(work, ignore_errors=True)
    tree = work / "go/src/k8s.io/kubernetes"
    tree.parent.mkdir(parents=True)
    _unpack(work, tree)
    env = {
        **os.environ,
        "PATH": f"{_GO}:{os.environ['PATH']}",
        "HOME": str(work),
        "GOPATH": str(work / "go"),
        "GOCACHE": str(work / "cache"),
        "GO111MODULE": "off",
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
    }
    _describe(work, tree, env)
    package = "k8s.io/kubernetes/vendor/k8s.io/component-base/version"
    major, minor, _ = VERSION.split(".")
    told = f"-X {package}.gitVersion=v{VERSION} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    sources = [f"./cmd/{program}" for program in PROGRAMS]
    (work / "bin").mkdir()
    _run(["go", "build", "-ldflags", f"-s -w {told}", "-o", f"{work}/bin/", *sources], tree, env)
    (work / "bin").rename(done)
    shutil.rmtree(work, ignore_errors=True)


def _unpack(work: Path, tree: Path) -> None:
    """Get the source with this machine's own mirror, whose lists of sources stay with us."""
    (work / "lists/partial").mkdir(parents=True)
    line = f"deb-src [signed-by={_KEYRING}] {install.mirror()} bookworm main\n"
    (work / "sources.list").write_text(line)
    ours = [f"Dir::Etc::sourcelist={work}/sources.list", "Dir::Etc::sourceparts=-", f"Dir::State::lists={work}/lists"]
    apt = ["apt-get", "--quiet", *(word for one in ours for word in ("-o", one))]
    _run([*apt, "update"], work, os.environ)
    _run([*apt, "source", "--only-source", "--download-only", "kubernetes"], work, os.environ)
    [description] = work.glob("*.dsc")
    if VERSION not in description.name:
        raise NotInstallableError(f"Debian has {description.name}, this test bed knows {VERSION}")
    _run(["dpkg-source", "--extract", str(description), str(tree)], work, os.environ)


def _describe(work: Path, tree: Path, env: Mapping[str, str]) -> None:
    """Generate what the API server tells of its types: Debian's source comes without."""
    generator = str(work / "openapi-gen")
    _run(["go", "build", "-o", generator, "./vendor/k8s.io/kube-openapi/cmd/openapi-gen"], tree, env)
    words = [generator, "--logtostderr", "-i", ",".join(_described(tree)), "-p", f"k8s.io/kubernetes/{_OPENAPI}"]
    words += ["-O", "zz_generated.openapi", "-h", "vendor/k8s.io/code-generator/hack/boilerplate.go.txt"]
    _run([*words, "-r", str(work / "violations")], tree, env)


def _described(tree: Path) -> Sequence[str]:
    """Packages that ask for it."""
    vendored = [path for path in (tree / "vendor/k8s.io").iterdir() if not path.name.startswith(("code-", "sample-"))]
    found = set()
    for root in (tree / "pkg", tree / "cmd", tree / "plugin", *vendored):
        for folder, _, names in os.walk(root):
            here = [Path(folder, name) for name in names if name.endswith(".go") and not name.endswith("_test.go")]
            if any(_MARK.search(path.read_text(errors="replace")) for path in here):
                found.add(f"k8s.io/kubernetes/{Path(folder).relative_to(tree)}")
    return sorted(found)


def _run(argv: Sequence[str], where: Path, env: Mapping[str, str]) -> None:
    done = subprocess.run(
        ["nice", *argv], cwd=where, env=env, check=False, capture_output=True, text=True, timeout=40 * _MINUTES
    )
    if done.returncode != 0:
        raise NotInstallableError(f"{' '.join(argv)[:200]}: {(done.stderr or done.stdout)[-2000:]}")


if __name__ == "__main__":
    sys.stdout.write(f"{programs()}\n")
