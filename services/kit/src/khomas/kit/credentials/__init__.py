"""Credentials towards other systems: how long they last, what commands need to use them, and how they are renewed."""

from khomas.kit.credentials.interface import (
    Credential,
    CredentialPlugin,
    CredentialProvider,
    RenewalFailed,
)
from khomas.kit.credentials.keeper import Keeper, KeeperSettings, Notice, Rung, What, rung
from khomas.kit.credentials.opening import CredentialSettings, open_all
from khomas.kit.credentials.watch import Credentials

__all__ = [
    "Credential",
    "CredentialPlugin",
    "CredentialProvider",
    "CredentialSettings",
    "Credentials",
    "Keeper",
    "KeeperSettings",
    "Notice",
    "RenewalFailed",
    "Rung",
    "What",
    "open_all",
    "rung",
]
