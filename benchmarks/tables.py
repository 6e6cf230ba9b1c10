"""Make Markdown tables from the lines that the other benchmarks print.

    python -m benchmarks.tables docs/performance.jsonl [--into=docs/performance.md]
    python -m benchmarks.tables docs/validation.jsonl [--into=docs/validation.md]

Prints the tables or, with --into, puts them between the lines of the file that name the .jsonl
(`report.markdown.insert`).
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
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
SETTING = ("preset", "case", "precision", "devices")


def table(title: str, header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Returns a heading and a Markdown table."""
    rows = [header, ["---"] * len(header), *body]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return f"### {title}\n\n" + "\n".join(lines) + "\n"


def _setting(line: Line) -> list[str]:
    return [line["preset"], CASES[line["case"]], line["precision"], str(line["devices"])]


def _ratio(line: Line) -> str:
    return f"{line['ratio']:.2f} [{line['ratio_low']:.2f}, {line['ratio_high']:.2f}]"


def _pair(rates: Sequence[float]) -> str:
    return " and ".join(map(_rate, rates))


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def against_peers(lines: Sequence[Line]) -> str:
    """Returns the table of `benchmarks.compare`."""
    header = ["preset", "case", "precision", "our devices"]
    header += ["PyTorch", "images/s, ours and theirs", "ratio"]
    body = [[*_setting(x), x["mode"], _pair(x["rates"]), _ratio(x)] for x in lines]
    return table("Ours over the peer: `benchmarks.compare`", header, body)


def against_revision(lines: Sequence[Line]) -> str:
    """Returns the table of `benchmarks.revisions`."""
    header = [*SETTING, "now over", "images/s, now and then", "ratio"]
    body = [[*_setting(x), x["before"], _pair(x["rates"]), _ratio(x)] for x in lines]
    return table("Now over an earlier revision: `benchmarks.revisions`", header, body)


def against_limit(lines: Sequence[Line]) -> str:
    """Returns the table of `benchmarks.speed`."""
    header = [*SETTING, "images/s", "GFLOP/s", "of the matrix product", "peak memory"]
    body = []
    for line in lines:
        rate = _rate(line["images_per_second"])
        share = f"{line['utilisation']:.0%}"
        memory = f"{line['peak_mib'] / 1024:.1f} GiB"
        body.append([*_setting(line), rate, f"{line['gflops']:,.0f}", share, memory])
    return table("Against a large matrix product: `benchmarks.speed`", header, body)


def outside_programs(lines: Sequence[Line]) -> str:
    """Returns the table of `benchmarks.loop`."""
    header = ["config", "generation", "seconds", "outside programs"]
    header += ["largest parts of it, seconds", "compilations"]
    body = []
    for line in lines:
        parts = sorted(line["outside_seconds"].items(), key=lambda item: -item[1])[:4]
        largest = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts)
        row = [line["config"], str(line["generation"]), f"{line['seconds']:.1f}"]
        body.append([*row, f"{line['outside']:.1%}", largest, str(line["compilations"])])
    return table("Time outside compiled programs: `benchmarks.loop`", header, body)


def kinds_of_work(lines: Sequence[Line]) -> str:
    """Returns the table of `benchmarks.profile`."""
    body = []
    for line in lines:
        for kind, share in line["shares"].items():
            body.append([line["config"], kind, f"{share:.0%}"])
    title = "A generation by kind of work: `benchmarks.profile`"
    return table(title, ["config", "work", "share"], body)


def over_devices(lines: Sequence[Line]) -> str:
    """Returns the table of `benchmarks.devices`."""
    columns = ["network", "precision", "devices", "microbatches", "steps", "seeds"]
    body = []
    for line in lines:
        row = [str({"microbatches": 1, **line}[column]) for column in columns]
        body.append([*row, f"{line['relative_l2']:.1e}", f"{line['largest']:.1e}"])
    header = [*columns, "relative L2 distance to one device, median", "largest"]
    return table("The same training on more devices: `benchmarks.devices`", header, body)


def generated_images(lines: Sequence[Line]) -> str:
    """Returns the last line of `benchmarks.devices` as a sentence."""
    sentences = []
    for line in lines:
        digests = "one digest" if line["one_digest"] else "digests differ"
        sentences.append(
            f"{line['images_drawn']} images generated from the same weights on {line['devices']} "
            f"devices: {digests}.\n"
        )
    return "".join(sentences)


def loss_curves(lines: Sequence[Line]) -> str:
    """Returns the table of `benchmarks.curves`."""
    header = ["preset", "case", "before", "steps"]
    header += ["loss, now and then", "largest difference", "step 1"]
    body = []
    for line in lines:
        now, then = line["last_loss"]
        row = [line["preset"], CASES[line["case"]], line["against"], str(line["steps"])]
        row += [f"{now:.5f} and {then:.5f}", f"{line['largest_relative_difference']:.1e}"]
        body.append([*row, f"{line['first_relative_difference']:.1e}"])
    return table("Losses now and at an earlier revision: `benchmarks.curves`", header, body)


def covered(lines: Sequence[Line]) -> str:
    """Returns the table of `benchmarks.coverage`: the lowest coverage of each interval."""
    return _over_designs("Coverage of 95 % intervals: `benchmarks.coverage`", lines, _lowest)


def _lowest(name: str, lines: Sequence[Line]) -> str:
    found = [x["coverage"][name] for x in lines if name in x["coverage"]]
    return f"{min(found):.3f}" if found else "–"


def beyond_null(lines: Sequence[Line]) -> str:
    """Returns the table of the null bands: how often a number lies beyond its 5 % quantile."""
    title = "Numbers beyond the 5 % quantile of their null: `benchmarks.coverage`"
    return _over_designs(title, lines, _largest_excess)


def _largest_excess(name: str, lines: Sequence[Line]) -> str:
    found = [x["beyond_null"][name][0] for x in lines if name in x["beyond_null"]]
    return f"{max(found):.3f}" if found else "–"


def _over_designs(
    title: str, lines: Sequence[Line], worst: Callable[[str, Sequence[Line]], str]
) -> str:
    """A row per number, a column per design (kinds of recalls x trials); a cell is the worst."""
    kind = "coverage" if "coverage" in lines[0] else "beyond_null"
    designs = list(dict.fromkeys(line["design"] for line in lines))
    names = dict.fromkeys(name for line in lines for name in line[kind])
    body = []
    for name in names:
        cells = [worst(name, [x for x in lines if x["design"] == design]) for design in designs]
        body.append([f"`{name}`", *cells])
    heads = []
    for design in designs:
        own = [line for line in lines if line["design"] == design]
        heads.append(f"{design}, {len(own)} x {own[0]['trials']}")
    return table(title, ["worst case", *heads], body)


def placebos(lines: Sequence[Line]) -> str:
    """Returns the table of `benchmarks.placebo`."""
    body = []
    for line in lines:
        verdicts = [f"{name} {share:.1%}" for name, share in line["verdicts"].items()]
        row = [line["case"], str(line["seeds"]), str(line["studies"])]
        body.append([*row, f"{line['any_change']:.1%}", ", ".join(verdicts)])
    header = ["loops", "seeds", "studies", "studies with any change", "planned verdicts"]
    return table("Placebos, and a harm that is there: `benchmarks.placebo`", header, body)


def joint_power(lines: Sequence[Line]) -> str:
    """Returns the table of the power of the joint test, from `benchmarks.dynamics`."""
    joint = [line for line in lines if "arms" in line]
    effects = list(dict.fromkeys(line["contrast_in_sd"] for line in joint))
    power = {(x["arms"], x["seeds"], x["contrast_in_sd"]): x["power"] for x in joint}
    body = []
    for arms, seeds in dict.fromkeys(key[:2] for key in power):
        cells = [f"{power[arms, seeds, effect]:.2f}" for effect in effects]
        body.append([str(arms), str(seeds), *cells])
    header = ["contrasts in the family", "seeds", *(f"{effect:g} sd" for effect in effects)]
    trials = joint[0]["trials"]
    title = f"Power of the joint test, one true contrast, {trials} trials: `benchmarks.dynamics`"
    return table(title, header, body)


def false_findings(lines: Sequence[Line]) -> str:
    """Returns the table of false findings among skewed contrasts, from `benchmarks.dynamics`."""
    body = [[line["contrasts"], str(line["seeds"]), f"{line['rate']:.1%}"] for line in lines]
    title = "Contrasts of mean 0 that a test at 5 % calls significant: `benchmarks.dynamics`"
    return table(title, ["contrasts", "seeds", "called significant"], body)


# By a field that the lines of the other benchmarks do not have.
TABLES: dict[str, Callable[[Sequence[Line]], str]] = {
    "mode": against_peers,
    "before": against_revision,
    "utilisation": against_limit,
    "outside": outside_programs,
    "shares": kinds_of_work,
    "relative_l2": over_devices,
    "one_digest": generated_images,
    "against": loss_curves,
    "coverage": covered,
    "beyond_null": beyond_null,
    "any_change": placebos,
    "contrast_in_sd": joint_power,
    "contrasts": false_findings,
}


def markdown(lines: Sequence[Line]) -> str:
    """Returns all tables, device by device; simulations have none."""
    parts = []
    for device in dict.fromkeys(line.get("device") for line in lines):
        if device:
            parts.append(f"## Measured on: {device}\n")
        for field, make in TABLES.items():
            own = [line for line in lines if line.get("device") == device and field in line]
            if own:
                parts.append(make(own))
    return "\n".join(parts)


def main() -> None:
    """Prints or writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lines", metavar="LINES.jsonl", type=Path)
    parser.add_argument("--into", metavar="FILE.md", type=Path)
    args = parser.parse_args()
    text = markdown([json.loads(line) for line in args.lines.read_text().splitlines()])
    if args.into:
        insert(args.into, args.lines.name, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
