"""Settings of the archive service."""

from datetime import timedelta

from pydantic import Field, field_validator

from khomas.kit.config import ServiceSettings


class ArchiveSettings(ServiceSettings, env_prefix="KHOMAS_ARCHIVE_"):
    """What can be set; every default works on a laptop."""

    # Address of an offered file, with {did}, {file} and {file_name} in it; without it access_url is NULL.
    access_url: str = ""
    # Ask bookkeeping which job and production made a file. Without it the cards name the origin only.
    bookkeeping: bool = True
    # Read and write where storages say that their files lie, if that can be seen from here. Without it bytes go
    # over HTTP, which is right where the same path means something else on this machine.
    local_paths: bool = True
    # Threads that read and write FITS files, one a file.
    data_threads: int = Field(default=2, gt=0)
    # Files that are fetched, copied and committed together.
    batch_files: int = Field(default=32, gt=0, le=1000)
    poll: timedelta = timedelta(seconds=1)
    # First pause after a failed try; it doubles with every one.
    pause: timedelta = timedelta(seconds=5)
    lease: timedelta = timedelta(minutes=5)
    upstream_deadline: timedelta = timedelta(seconds=60)

    @field_validator("access_url")
    @classmethod
    def _check_access_url(cls, template: str) -> str:
        try:
            template.format(did="", file="", file_name="")
        except (KeyError, IndexError, ValueError):
            raise ValueError("may have {did}, {file} and {file_name} in it, and no other braces") from None
        return template
