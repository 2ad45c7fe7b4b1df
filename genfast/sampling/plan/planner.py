"""From a captured model to a Program: when everything runs, what is kept, and the instructions."""

from dataclasses import replace

import torch

from genfast.errors import InputError
from genfast.sampling import values as v
from genfast.sampling.plan.emit import Emitter
from genfast.sampling.plan.schedule import Clock, make_schedule
from genfast.sampling.probe.causality import report_causality, require_causal, scan_time
from genfast.sampling.probe.dependence import analyse
from genfast.sampling.probe.leak import Draws
from genfast.sampling.program import Program

# Columns of a sound that are computed together where nothing within them is needed. Wide enough
# that a span's weights are used eight times, narrow enough that most dilations reach past it.
_SOUND_SPAN = 8


def plan(
    graph: v.Graph,
    colours: int,
    encoded: int,
    draws: Draws,
    predicts: str | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Program:
    """Plan the sampling of a captured model.

    Args:
        graph: the captured model.
        colours: symbols of a pixel.
        encoded: numbers that the model sees of each symbol.
        draws: for each draw its first colour, how many, and the output features it reads.
        predicts: "current", "next" or None, as `genfast.compile_sampler` takes it.
        dtype: of the numbers.
        device: where they are.

    Raises:
        CausalityError: some prediction depends on symbols that are not drawn before it.
        UnsupportedModelError: no regular order of computation exists.
    """
    if graph.input.features != colours * encoded:
        raise InputError(
            f"compile_sampler: expected an input of {colours} colours x {encoded} numbers, got "
            f"{graph.input.features} features"
        )
    graph = with_copies(graph)
    found = analyse(graph, scan_time(graph, colours))
    report = report_causality(graph, colours, draws, predicts, found)
    require_causal(report)
    firsts = [first for first, _, _ in draws]
    span = graph.input.width if graph.input.height > 1 else min(_SOUND_SPAN, graph.input.width)
    clock = Clock(graph.input.height, graph.input.width, span, (*firsts, colours))
    reads = [(d, features, report.offset) for d, (_, _, features) in enumerate(draws)]
    schedule, needed = make_schedule(graph, found, clock, reads)
    emitter = Emitter(graph, found, clock, schedule, needed, dtype, device)
    instructions = emitter.instructions()
    planned_draws = emitter.draws(draws, report.offset)
    return Program(
        colours, encoded, clock.height, clock.width, span, dtype, device,
        emitter.buffers(planned_draws), tuple(emitter.tables), tuple(instructions), planned_draws,
    )  # fmt: skip


def with_copies(graph: v.Graph) -> v.Graph:
    """Store convolution inputs that have a fill before they are read: taps skip what is outside."""
    replaced: list[v.Value] = []
    for value in graph.values:
        body = value.body
        if isinstance(body, v.Conv) and any(source.fill != 0 for source in body.inputs):
            features = sum(source.count for source in body.inputs)
            copied = v.Value(
                features, body.height, body.width, v.Pointwise("copy", [body.inputs]),
                value.row_scale * body.up // body.down, value.column_scale * body.up // body.down,
                value.where,
            )  # fmt: skip
            replaced.append(copied)
            value.body = replace(body, inputs=(v.Source(copied, 0, 1, features),))
        replaced.append(value)
    return replace(graph, values=replaced)
