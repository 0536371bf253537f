"""What all kinds of credentials can be told."""

import shlex

from pydantic import BaseModel, ConfigDict

from khomas.kit.credentials.commands import run


class Options(BaseModel):
    """Options that every kind has. None of them is a secret; secrets are in files that they name."""

    # A wrong value is not repeated in the error: somebody may have put a secret there.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    # Run to renew it, instead of what the kind does by itself. It writes the file; it gets no input.
    renew_command: tuple[str, ...] = ()
    # Somebody else keeps it fresh: how long it lasts now says nothing about how long it will.
    kept_fresh: bool = False
    # The group may read its files, as where secrets are mounted.
    group_readable: bool = False
    # What people are told to do about it; empty = what the kind knows.
    remedy: str = ""

    @property
    def told(self) -> str:
        """The command for people, where the settings say."""
        return self.remedy or shlex.join(self.renew_command)

    async def run_renew_command(self) -> None:
        """Run the command. Raises `RenewalFailed`."""
        await run(self.renew_command)
