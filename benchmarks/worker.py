"""One program of a comparison, resident: it builds a case, says so, and then runs it whenever it is asked.

`serve` writes a JSON object a line: the case when it is ready, the seconds of a call for every line
it reads. No framework is imported here, so that both sides of a comparison use it.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """`call()` does the work on `images` images and waits for its end."""

    call: Callable[[], None]
    images: int
    parameters: int
    device: str = ""


def serve(build: Callable[[], Case]) -> None:
    """Answers lines of standard input until it ends."""
    started = time.perf_counter()
    case = build()
    case.call()
    ready = {"images": case.images, "parameters": case.parameters, "device": case.device}
    print(json.dumps(ready | {"first_call_seconds": time.perf_counter() - started}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        case.call()
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
