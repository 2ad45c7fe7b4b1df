"""`genfast info`."""

import json
from typing import Annotated

from genfast.cli._help import option


def info(
    as_json: Annotated[
        bool, option("--json", help="Print the same facts as JSON, for programs.")
    ] = False,
) -> None:
    """Show versions, hardware, and which code each op runs and why.

    That is the compiler, the SIMD level in use, the GPU architectures built for and the GPUs seen:
    the first thing to look at when something is slow, and to paste into a bug report.
    """
    from genfast.info import collect, render

    facts = collect()
    print(json.dumps(facts, indent=1) if as_json else render(facts))
