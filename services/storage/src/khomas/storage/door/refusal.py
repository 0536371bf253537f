"""An answer of the door that says no."""


class Refusal(Exception):
    """Something that is not done, with its status, a word for programs and a sentence for people."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


def taken(path: str) -> Refusal:
    """Say that there is something already."""
    return Refusal(412, "EXISTS", f"There is a {path} already, and it is not to be overwritten.")


def no_folder(path: str) -> Refusal:
    """Say that the folder above is missing."""
    return Refusal(409, "NO_FOLDER", f"There is no folder for {path}; make it first.")
