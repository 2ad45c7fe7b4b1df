"""The form of the help texts."""

from typing import Any

import typer
import typer.core

ARGUMENTS, OPTIONS = "Arguments", "Options"


def option(
    *names: str, help: str, metavar: str | None = None, group: str = OPTIONS, **more: Any
) -> Any:
    """Declare an option whose help text is a sentence with its unit and its default.

    The default stands in the sentence because for many options it is not a value: it depends on
    other options, or on the run that is resumed.
    """
    return typer.Option(
        *names, metavar=metavar, help=help, rich_help_panel=group, show_default=False, **more
    )


class GroupedCommand(typer.core.TyperCommand):
    """A command whose help lists its options in groups, in plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each group, in the order of the first option of each."""
        groups: dict[str, list[tuple[str, str]]] = {ARGUMENTS: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            is_argument = parameter.param_type_name == "argument"
            group = getattr(parameter, "rich_help_panel", None) or OPTIONS
            if record is not None:
                groups.setdefault(ARGUMENTS if is_argument else group, []).append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)
