"""Metadata from paths. A pattern of a user may take for ever, so another process matches, and not for long.

That process runs this very file, with nothing but the standard library.
"""

import asyncio
import json
import re
import sys
from collections.abc import Sequence

# For a batch; 10,000 paths and 10 patterns take 0.3 s on a busy machine, the start of the process 0.1 s of them.
_SECONDS = 30.0


class TooSlow(Exception):
    """The patterns were still being matched when the time was over."""


async def matched(patterns: Sequence[str], paths: Sequence[str]) -> list[dict[str, str]]:
    """Return for each path what the named groups of the patterns found; the last pattern wins. Raises TooSlow."""
    if not patterns:
        return [{} for _ in paths]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", __file__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_SECONDS):
            answer, _ = await process.communicate(json.dumps([[*patterns], [*paths]]).encode())
    except TimeoutError:
        raise TooSlow from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found: list[dict[str, str]] = json.loads(answer)
    return found


def groups(patterns: Sequence[str], path: str) -> dict[str, str]:
    """Return what the patterns find in one path."""
    found: dict[str, str] = {}
    for pattern in patterns:
        if match := re.search(pattern, path):
            found |= {key: text for key, text in match.groupdict().items() if text is not None}
    return found


if __name__ == "__main__":
    wanted, given = json.load(sys.stdin)
    json.dump([groups(wanted, one) for one in given], sys.stdout)
