"""Kerberos tickets in a cache file, renewed by `kinit -R` or fetched anew with a keytab."""

import asyncio
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from khomas.kit.credentials import ccache
from khomas.kit.credentials.commands import run
from khomas.kit.credentials.interface import Credential, CredentialPlugin, RenewalFailed
from khomas.kit.credentials.options import Options
from khomas.kit.credentials.secret_file import SecretFile, Unreadable, put_in_place


class KerberosOptions(Options):
    """Where the tickets are, and how new ones are got."""

    # A FILE: cache. Empty = $KRB5CCNAME, /tmp/krb5cc_$UID.
    cache: Path | None = None
    # Needed with a keytab, mode 600.
    principal: str = ""
    keytab: Path | None = None
    # With a keytab: what is asked for, as kinit takes it ("10h"). Empty = what the realm gives.
    lifetime: str = ""
    renewable_lifetime: str = ""
    # Empty = the machine's krb5.conf.
    config: Path | None = None
    # The command, with its folder where that is not on the PATH.
    command: str = "kinit"


class KerberosCache:
    """Tickets of one principal."""

    kind = "kerberos"

    def __init__(self, name: str, options: KerberosOptions, environment: Mapping[str, str] = os.environ) -> None:
        self.name = name
        self._options = options
        named = environment.get("KRB5CCNAME", "")
        # The usual path; who owns the file is checked.
        usual = named.removeprefix("FILE:") or f"/tmp/krb5cc_{os.geteuid()}"  # noqa: S108
        self._path = options.cache or Path(usual)
        remedy = options.told or shlex.join(self._kinit(self._path, anew=True))
        self._file = SecretFile(self._read, remedy, group_readable=options.group_readable)

    @property
    def renewable(self) -> bool:
        """Always: a ticket that cannot be renewed says so when it is tried."""
        return bool(self._options.keytab or self._options.renew_command) or self._limit_known()

    def status(self) -> Credential:
        """Read principal and times of the ticket-granting ticket."""
        return self._file.look(self._path)

    def files(self) -> Mapping[str, Path]:
        """The cache, as `cache`."""
        return {"cache": self._path}

    def environment(self) -> Mapping[str, str]:
        """KRB5CCNAME, and KRB5_CONFIG where it is set."""
        config = {} if self._options.config is None else {"KRB5_CONFIG": str(self._options.config)}
        return {"KRB5CCNAME": f"FILE:{self._path}", **config}

    async def renew(self) -> None:
        """Fetch new tickets with the keytab, or prolong what is there."""
        if self._options.renew_command:
            await self._options.run_renew_command()
            return
        self._check_keytab()
        # Beside the cache and then into its place: who reads it never meets half of one.
        with TemporaryDirectory(prefix=".renewal-", dir=self._path.parent) as folder:
            made = Path(folder, "cache")
            if self._options.keytab is None:
                _copy(self._path, made)
            config = {} if self._options.config is None else {"KRB5_CONFIG": str(self._options.config)}
            await run(self._kinit(made, anew=self._options.keytab is not None), env=config)
            await asyncio.to_thread(put_in_place, made, self._path)

    def _limit_known(self) -> bool:
        known = self.status()
        return known.present and known.renews

    def _check_keytab(self) -> None:
        keytab = self._options.keytab
        if keytab is None:
            return
        try:
            exposed = keytab.stat().st_mode & (0o037 if self._options.group_readable else 0o077)
        except OSError as error:
            raise RenewalFailed(f"{keytab} cannot be read: {error.strerror}") from error
        if exposed:
            raise RenewalFailed(f"{keytab} can be used by others; chmod 600 {shlex.quote(str(keytab))}")

    def _kinit(self, cache: Path, *, anew: bool) -> list[str]:
        argv = [self._options.command, "-c", f"FILE:{cache}"]
        if not anew:
            return [*argv, "-R"]
        if self._options.keytab is not None:
            argv += ["-k", "-t", str(self._options.keytab)]
        if self._options.lifetime:
            argv += ["-l", self._options.lifetime]
        if self._options.renewable_lifetime:
            argv += ["-r", self._options.renewable_lifetime]
        return [*argv, self._options.principal] if self._options.principal else argv

    def _read(self, content: bytes, found: os.stat_result) -> Credential:
        try:
            cache = ccache.read(content)
        except ccache.NotCache as error:
            raise Unreadable(str(error)) from error
        granting = [ticket for ticket in cache.tickets if ticket.server.startswith("krbtgt/")]
        if not granting:
            raise Unreadable("it holds no ticket-granting ticket")
        best = max(granting, key=lambda ticket: ticket.end)
        anew = bool(self._options.keytab or self._options.renew_command or self._options.kept_fresh)
        return Credential(
            present=True,
            subject=cache.principal,
            not_before=best.start,
            expires=best.end,
            renewable_until=None if anew else best.renewable_until,
            renews=anew or (best.renewable_until is not None and best.renewable_until > best.end),
            can=tuple(ticket.server for ticket in cache.tickets if not ticket.server.endswith("@X-CACHECONF:")),
        )


def _copy(source: Path, target: Path) -> None:
    try:
        content = source.read_bytes()
    except OSError as error:
        raise RenewalFailed(f"{source} cannot be read: {error.strerror}") from error
    target.touch(mode=0o600)
    target.write_bytes(content)


plugin = CredentialPlugin("kerberos", KerberosOptions, KerberosCache)
