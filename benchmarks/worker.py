"""A resident program of a comparison: it builds a case, then runs it on request.

`serve` writes one JSON object a line: first the case when it is ready, then the seconds of a call
for every line that it reads. This file imports no framework, so that both programs of a comparison
can use it.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """Work to time: `call()` processes `images` images and waits for the end.

    steps_per_dispatch: of training; 1 for other cases, and for a peer.
    """

    call: Callable[[], None]
    images: int
    parameters: int
    device: str = ""
    steps_per_dispatch: int = 1


def serve(build: Callable[[], Case]) -> None:
    """Builds a case, then runs it once for every line of standard input."""
    started = time.perf_counter()
    case = build()
    case.call()
    ready = {
        "images": case.images,
        "parameters": case.parameters,
        "device": case.device,
        "steps_per_dispatch": case.steps_per_dispatch,
        "first_call_seconds": time.perf_counter() - started,
    }
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        case.call()
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
