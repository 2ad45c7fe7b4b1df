"""The results of `genfast bench sampling` as Markdown."""

from collections.abc import Iterator, Mapping
from typing import Any

from genfast.bench.measure import digits

SAMPLES_PER_SECOND = 16000


def render(results: Mapping[str, Any]) -> str:
    """Write the table of results, with the machine, the versions and the command."""
    return "\n".join(_lines(results)) + "\n"


def _lines(results: Mapping[str, Any]) -> Iterator[str]:
    of, versions = results["machine"], results["versions"]
    yield (
        f"{of['processor']}, {of['accelerator'] or str(of['cores']) + ' cores'}, {of['system']}; "
        f"torch {versions['torch']}, genfast {versions['genfast']} at "
        f"{results['commit'] or 'an unknown commit'}; float32"
        f"{', without TF32' if of['accelerator'] else ''}."
    )
    yield ""
    if "command" in results:
        yield f"`{results['command']}`"
        yield ""
    yield (
        "Seconds are medians (fastest to slowest). The unit, a forward pass, is an eager forward "
        "of that batch in plain PyTorch under `inference_mode`, masked weights multiplied "
        "beforehand. Beside it is the same by genfast's ops, which are faster. The last columns "
        "say how many times as long other ways take: the naive loop, computed from the time of a "
        "few of its steps by the faster of the two, and the published one, caches in PyTorch and a "
        "Python loop."
    )
    yield ""
    yield (
        "| case | batch | threads | forward, s | sample, s | **forwards** | "
        "of genfast's | naive loop | cached loop |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for case in results["cases"]:
        for row in case["rows"]:
            yield _row(case, row)
    yield ""
    for case in results["cases"]:
        yield from _notes(case)


def _row(case: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    seconds = row["sample"]["median"]
    cells = [
        case["title"],
        str(row["batch"]),
        str(row["threads"]),
        _seconds(row["forward"]),
        _seconds(row["sample"]),
        f"**{digits(row['forwards'])}**",
        digits(row["own_forwards"]),
        f"{digits(row['naive_seconds'] / seconds)}x",
        _loop(row, seconds),
    ]
    return f"| {' | '.join(cells)} |"


def _seconds(timing: Mapping[str, Any]) -> str:
    spread = f"{digits(timing['fastest'])} to {digits(timing['slowest'])}"
    return f"{digits(timing['median'])} ({spread})"


def _loop(row: Mapping[str, Any], seconds: float) -> str:
    if "loop" not in row:
        return ""
    return f"{digits(row['loop']['seconds'] / seconds)}x"


def _notes(case: Mapping[str, Any]) -> Iterator[str]:
    agreement = case["agreement"]
    yield (
        f"- {case['title']}: compiled and verified in {digits(case['compile_seconds'])} s; logits "
        f"within {agreement['error']:.1e} of the forward's, relative to their range; of "
        f"{agreement['symbols']:,} symbols {agreement['same']:,} are what the forward's logits "
        "draw with the same noise."
    )
    for row in case["rows"]:
        if case["name"] == "wavenet":
            rate = SAMPLES_PER_SECOND / row["sample"]["median"]
            yield (
                f"- One stream, threads {row['threads']}: {digits(rate)} samples a second, "
                f"{digits(rate / SAMPLES_PER_SECOND)} times real time at 16 kHz."
            )
        loop = row.get("loop")
        if loop is not None and loop["symbols_timed"] < case["symbols"]:
            yield (
                f"- The cached loop at batch {row['batch']}, threads {row['threads']}, was timed "
                f"over {loop['symbols_timed']} of {case['symbols']} symbols: "
                f"{digits(loop['timed']['median'])} s."
            )
    memory = case.get("memory")
    if memory is not None and memory["sample_bytes"] is not None:
        share = memory["sample_bytes"] / memory["activation_bytes"]
        yield (
            f"- Memory at batch {memory['batch']}: sampling grew the process by "
            f"{memory['sample_bytes'] / 2**20:.1f} MiB beyond the model and its packed weights, "
            f"{share:.1%} of the {memory['activation_bytes'] / 2**20:,.0f} MiB that one eager "
            "forward computes."
        )
