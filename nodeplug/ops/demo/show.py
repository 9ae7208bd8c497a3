"""How the demo looks: steps with their time, tables, and plain lines where there is no terminal."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


_IDENTIFIER = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{20,}")


class Step:
    """What a step that is under way found out, said when it is done."""

    def __init__(self) -> None:
        self.said = ""


class Show:
    """The terminal. Each step begins and ends with `check()`, which raises when the demo is to end."""

    def __init__(self, console: Console | None = None, *, check: Callable[[], None] = lambda: None) -> None:
        self.console = console or Console(highlight=False)
        self._check = check

    def title(self, text: str, below: str) -> None:
        """The head of it all."""
        self.console.print(f"[bold]{escape(text)}[/]")
        self.console.print(f"[dim]{escape(below)}[/]\n")

    @contextmanager
    def step(self, text: str) -> Iterator[Step]:
        """One step: turning while it is under way, with its seconds when it is done."""
        began = time.monotonic()
        step = Step()
        with self.console.status(escape(text)):
            try:
                self._check()
                yield step
                self._check()
            except BaseException:
                self.console.print(f"[red]✗[/] {escape(text)}", soft_wrap=True)
                raise
        took = f"{time.monotonic() - began:.2f} s"
        said = f": {escape(step.said)}" if step.said else ""
        self.console.print(f"[green]✓[/] {escape(text)}{said} [dim]{took}[/]", soft_wrap=True)

    def note(self, text: str) -> None:
        """A line between steps."""
        self.console.print(f"  [yellow]{escape(text)}[/]")

    def command(self, words: Sequence[str]) -> None:
        """A command that is about to be run, as one would type it."""
        self.console.print(f"\n[dim]$[/] [bold]{escape(' '.join(words))}[/]", soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
        """Rows under their headings."""
        table = Table(*columns, title=title or None, title_justify="left", box=None, padding=(0, 3, 0, 2))
        for row in rows:
            table.add_row(*(escape(_IDENTIFIER.sub(r"\1...", cell)) for cell in row))
        self.console.print(table)
        self.console.print()
