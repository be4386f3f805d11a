"""Progress bars of the trainers; a line a minute where nobody sees a bar move."""

import time
from collections.abc import Callable

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Report = Callable[[float, dict[str, float]], None]
"""The fraction done, and figures to show."""

LINE_EVERY_S = 60.0


class Bars(Progress):
    """One bar under the other; entered once for a whole run."""

    def __init__(self, *, disable: bool = False) -> None:
        figures = TextColumn("{task.fields[figures]}")
        super().__init__(TextColumn("{task.description}"), BarColumn(), figures, TimeElapsedColumn(), disable=disable)

    def bar(self, title: str) -> Report:
        """A new bar; what it returns moves it."""
        task = self.add_task(title, total=1.0, figures="")
        said = 0.0

        def report(done: float, figures: dict[str, float]) -> None:
            nonlocal said
            text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self.update(task, completed=done, figures=text)
            if not self.disable and not self.console.is_terminal and time.monotonic() - said > LINE_EVERY_S:
                said = time.monotonic()
                print(f"{title}: {done:.1%}, {text}", flush=True)

        return report
