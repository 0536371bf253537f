"""What a configuration says of a backend, as its plug-in takes it."""

from pathlib import Path

from khomas.scheduler.backends.local import plugin as local
from khomas.scheduler.backends.slurm_rest import plugin as slurm_rest
from khomas.scheduler.placement.sites import with_paths


def test_texts_of_a_configuration_become_paths_where_the_plugin_wants_them() -> None:
    options = {"url": "http://slurm:6820", "token_file": "/run/token", "spool": "/spool", "ssh_key": None}
    settings = slurm_rest.settings(**with_paths(slurm_rest, options))
    assert (settings.token_file, settings.spool, settings.ssh_key) == (Path("/run/token"), Path("/spool"), None)
    assert settings.url == "http://slurm:6820"
    assert with_paths(local, {"spool": "/spool", "path": "/bin"}) == {"spool": Path("/spool"), "path": "/bin"}
