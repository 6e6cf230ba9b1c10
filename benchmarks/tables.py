"""Tables from the lines that the other benchmarks print.

    python -m benchmarks.tables docs/performance.jsonl [--into=docs/performance.md]

Prints them as Markdown, or puts them between the lines of the file that name the .jsonl
(`report.markdown`).
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from selfloop_jax.report.markdown import insert

Line = dict[str, Any]


CASES = {
    "diffusion_train": "diffusion train step",
    "sample": "guided sampling",
    "classifier_train": "classifier train step",
    "classifier_inference": "classifier inference",
}


def table(title: str, head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """A heading and a Markdown table."""
    head = list(head)
    rows = [head, ["---"] * len(head), *body]
    return f"### {title}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _ratio(line: Line) -> str:
    return f"{line['ratio']:.2f} [{line['ratio_low']:.2f}, {line['ratio_high']:.2f}]"


def _setting(line: Line) -> list[str]:
    return [line["preset"], CASES[line["case"]], line["precision"], str(line["devices"])]


def beside_peers(lines: list[Line]) -> str:
    """The lines of `benchmarks.compare`."""
    head = [
        "preset",
        "case",
        "precision",
        "our devices",
        "PyTorch",
        "images/s, ours and theirs",
        "ratio",
    ]
    body = [[*_setting(x), x["mode"], _pair(x["rates"]), _ratio(x)] for x in lines]
    return table("Ours over the peer: `benchmarks.compare`", head, body)


def beside_before(lines: list[Line]) -> str:
    """The lines of `benchmarks.revisions`."""
    head = ["preset", "case", "precision", "devices", "now over", "images/s, now and then", "ratio"]
    body = [[*_setting(x), x["before"], _pair(x["rates"]), _ratio(x)] for x in lines]
    return table("Now over an earlier revision: `benchmarks.revisions`", head, body)


def _pair(rates: list[float]) -> str:
    return " and ".join(map(_rate, rates))


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def beside_limit(lines: list[Line]) -> str:
    """The lines of `benchmarks.speed`."""
    head = ["preset", "case", "precision", "devices"]
    head += ["images/s", "GFLOP/s", "of the matrix product", "peak memory"]
    body = [
        [
            *_setting(x),
            _rate(x["images_per_second"]),
            f"{x['gflops']:,.0f}",
            f"{x['utilisation']:.0%}",
            f"{x['peak_mib'] / 1024:.1f} GiB",
        ]
        for x in lines
    ]
    return table("Beside a large matrix product: `benchmarks.speed`", head, body)


def loop_share(lines: list[Line]) -> str:
    """The lines of `benchmarks.loop`."""
    head = [
        "config",
        "generation",
        "seconds",
        "outside programs",
        "the most of it, seconds",
        "compilations",
    ]
    body = []
    for x in lines:
        most = sorted(x["outside_seconds"].items(), key=lambda item: -item[1])[:4]
        told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in most)
        outside = f"{x['outside']:.1%}"
        body.append(
            [
                x["config"],
                str(x["generation"]),
                f"{x['seconds']:.1f}",
                outside,
                told,
                str(x["compilations"]),
            ]
        )
    return table("Time outside compiled programs: `benchmarks.loop`", head, body)


def kinds_of_work(lines: list[Line]) -> str:
    """The lines of `benchmarks.profile`."""
    body = [
        [x["config"], kind, f"{share:.0%}"] for x in lines for kind, share in x["shares"].items()
    ]
    return table(
        "A generation by kind of work: `benchmarks.profile`", ["config", "work", "share"], body
    )


def over_devices(lines: list[Line]) -> str:
    """The lines of `benchmarks.devices`."""
    head = ["network", "precision", "devices", "steps", "seeds"]
    body = [
        [*(str(x[name]) for name in head), f"{x['relative_l2']:.1e}", f"{x['largest']:.1e}"]
        for x in lines
    ]
    head += ["relative L2 distance to one device, median", "largest"]
    return table("The same training on more devices: `benchmarks.devices`", head, body)


def drawn_images(lines: list[Line]) -> str:
    """The last line of `benchmarks.devices`."""
    return "".join(
        f"{x['images_drawn']} images drawn from the same weights on {x['devices']} devices: "
        f"{'one digest' if x['one_digest'] else 'digests differ'}.\n"
        for x in lines
    )


def loss_curves(lines: list[Line]) -> str:
    """The lines of `benchmarks.curves`."""
    head = [
        "preset",
        "case",
        "before",
        "steps",
        "loss, now and then",
        "largest difference",
        "step 1",
    ]
    body = [
        [
            *(x["preset"], CASES[x["case"]], x["against"], str(x["steps"])),
            f"{x['last_loss'][0]:.5f} and {x['last_loss'][1]:.5f}",
            f"{x['largest_relative_difference']:.1e}",
            f"{x['first_relative_difference']:.1e}",
        ]
        for x in lines
    ]
    return table("Losses now and at an earlier revision: `benchmarks.curves`", head, body)


# What a line has that lines of other benchmarks do not.
TABLES: dict[str, Callable[[list[Line]], str]] = {
    "mode": beside_peers,
    "before": beside_before,
    "utilisation": beside_limit,
    "outside": loop_share,
    "shares": kinds_of_work,
    "relative_l2": over_devices,
    "one_digest": drawn_images,
    "against": loss_curves,
}


def markdown(lines: list[Line]) -> str:
    """All tables, by device."""
    parts = []
    for device in dict.fromkeys(line["device"] for line in lines):
        parts.append(f"## Measured on: {device}\n")
        for name, make in TABLES.items():
            own = [line for line in lines if line["device"] == device and name in line]
            parts += [make(own)] if own else []
    return "\n".join(parts)


def main() -> None:
    """Prints or writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", type=Path)
    parser.add_argument("--into", type=Path)
    args = parser.parse_args()
    text = markdown([json.loads(line) for line in args.lines.read_text().splitlines()])
    if args.into:
        insert(args.into, args.lines.name, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
