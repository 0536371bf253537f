"""Regular expressions of users: searched for in a process that can be killed.

Python's `re` takes exponential time for some, `(a|a)*b`, and holds the interpreter's lock meanwhile: neither a thread
nor a deadline helps.
"""

import asyncio
import contextlib
import io
import logging
import pickle
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, AnyStr, BinaryIO, Generic

log = logging.getLogger(__name__)

# The first answer waits for the process to start.
_START_SECONDS = 30.0
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Found(Generic[AnyStr]):
    """Whether a pattern was found, and its named groups."""

    there: bool
    groups: dict[str, AnyStr | None] = field(default_factory=dict)
    # False: it took too long, or is no regular expression; it counts as not found.
    answered: bool = True


async def search(
    questions: Sequence[tuple[AnyStr, AnyStr]], *, seconds: float = 2.0, in_all: float = 10.0
) -> list[Found[AnyStr]]:
    """Search texts for patterns, as `re.search` does; an answer for each pair of pattern and text.

    None gets more than about so many seconds, all together about so many. A pattern that took too long once is not
    searched for in the other texts.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + in_all
    unanswered: Found[AnyStr] = Found(there=False, answered=False)
    answers: dict[int, Found[AnyStr]] = {}
    slow: set[AnyStr] = set()
    while todo := [n for n, (pattern, _) in enumerate(questions) if n not in answers and pattern not in slow]:
        left = end - loop.time()
        if left <= 0:
            break
        told = await _told([questions[number] for number in todo], min(seconds, left))
        answers |= zip(todo, told, strict=False)
        if len(told) < len(todo):
            slow.add(questions[todo[len(told)]][0])
    if len(answers) < len(questions):
        log.warning("patterns.slow", extra={"patterns": len(slow), "unanswered": len(questions) - len(answers)})
    return [answers.get(number, unanswered) for number in range(len(questions))]


async def _told(questions: Sequence[tuple[AnyStr, AnyStr]], seconds: float) -> list[Found[AnyStr]]:
    """Answers to the questions up to the first that takes longer."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(Path(__file__))),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    asking = asyncio.create_task(_ask(process.stdin, pickle.dumps(list(questions))))
    told, patience, ended = bytearray(), _START_SECONDS, False
    try:
        with contextlib.suppress(TimeoutError):
            while piece := await asyncio.wait_for(process.stdout.read(_PIECE), patience):
                told += piece
                patience = seconds
            ended = True
    finally:
        if not ended:
            process.kill()
        await process.wait()
        await asking
    return [Found(*one) for one in _whole(told)[1:]]


async def _ask(stdin: asyncio.StreamWriter, content: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        stdin.write(content)
        await stdin.drain()
        stdin.close()


def _whole(content: bytes | bytearray) -> list[Any]:
    """What a process of ours has written, without what it was writing when it was killed."""
    stream, found = io.BytesIO(content), []
    with contextlib.suppress(EOFError, pickle.UnpicklingError):
        while True:
            found.append(pickle.load(stream))  # noqa: S301  from a process of ours
    return found


def _answer(asked: BinaryIO, told: BinaryIO) -> None:
    """The other process: answer one question after the other, after a sign that it has begun."""
    questions = pickle.load(asked)  # noqa: S301  from the process that started this one
    pickle.dump(None, told)
    told.flush()
    for pattern, text in questions:
        try:
            match = re.search(pattern, text)
            answer = (match is not None, match.groupdict() if match else {}, True)
        except (re.error, RecursionError, OverflowError, MemoryError):
            answer = (False, {}, False)
        pickle.dump(answer, told)
        told.flush()


if __name__ == "__main__":
    _answer(sys.stdin.buffer, sys.stdout.buffer)
