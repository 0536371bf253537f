"""A Kerberos realm on loopback: a KDC, a person with a password and a robot with a keytab."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.testbeds import install, packages
from tests.testbeds.processes import Processes, answers, free_ports, until
from tests.testbeds.voms import run

REALM = "KHOMAS.TEST"
PERSON = f"ada@{REALM}"
PASSWORD = "staple-battery-horse-correct"
ROBOT = f"robot/localhost@{REALM}"
_READY_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class KerberosBed:
    """A realm, and what a client needs."""

    config: Path
    # Of ROBOT.
    keytab: Path

    @property
    def environment(self) -> dict[str, str]:
        """What the tools need."""
        return {"KRB5_CONFIG": str(self.config)}

    def tickets(self, cache: Path, *options: str) -> Path:
        """Get tickets of PERSON: `-l 60s -r 300s`."""
        argv = ["kinit", "-c", f"FILE:{cache}", *options, PERSON]
        run(argv, self.environment, PASSWORD.encode() + b"\n")
        return cache

    def accepts(self, cache: Path) -> bool:
        """Whether the realm gives a ticket for a service to who shows this cache."""
        environment = {**self.environment, "KRB5CCNAME": f"FILE:{cache}"}
        return answers(["kvno", "-q", ROBOT], environment)


@contextmanager
def running(folder: Path) -> Iterator[KerberosBed]:
    """Make the realm and start its KDC."""
    install.debian(*packages.KERBEROS)
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    environment = _configured(folder, port)
    keytab = folder / "robot.keytab"
    run(["kdb5_util", "create", "-s", "-r", REALM, "-P", "master key of a test"], environment)
    for order in (
        f"addprinc -pw {PASSWORD} {PERSON}",
        f"addprinc -randkey {ROBOT}",
        f"ktadd -k {keytab} -norandkey {ROBOT}",
    ):
        run(["kadmin.local", "-r", REALM, "-q", order], environment)
    with Processes(folder / "log") as processes:
        pid = folder / "kdc.pid"
        processes.start(["krb5kdc", "-n", "-r", REALM, "-P", str(pid)], name="krb5kdc", env=environment)
        bed = KerberosBed(folder / "krb5.conf", keytab)
        robot = ["kinit", "-k", "-t", str(keytab), "-c", f"FILE:{folder / 'ready'}", ROBOT]
        until(lambda: answers(robot, bed.environment), _READY_SECONDS, "krb5kdc", processes)
        yield bed


def _configured(folder: Path, port: int) -> dict[str, str]:
    config, profile = folder / "krb5.conf", folder / "kdc.conf"
    config.write_text(
        f"[libdefaults]\n default_realm = {REALM}\n dns_lookup_kdc = false\n dns_lookup_realm = false\n rdns = false\n"
        f" dns_canonicalize_hostname = false\n"
        f"[realms]\n {REALM} = {{\n  kdc = 127.0.0.1:{port}\n }}\n[domain_realm]\n localhost = {REALM}\n"
    )
    profile.write_text(
        f"[kdcdefaults]\n kdc_listen = 127.0.0.1:{port}\n kdc_tcp_listen = 127.0.0.1:{port}\n"
        f"[realms]\n {REALM} = {{\n  database_name = {folder}/principal\n  key_stash_file = {folder}/stash\n"
        f"  acl_file = {folder}/kadm5.acl\n  max_life = 10h\n  max_renewable_life = 7d\n }}\n"
        f"[logging]\n kdc = FILE:{folder}/kdc.log\n"
    )
    return {"KRB5_CONFIG": str(config), "KRB5_KDC_PROFILE": str(profile)}
