"""What a driver lets others see while it works: secrets in command lines and logs, changes beside its executable."""

from __future__ import annotations

import base64
import os
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

_PAUSE = 0.001
_LIMIT = 16 << 20


class Eyes:
    """Looks from its beginning to its end (`with`). `logs` are searched at the end, from where they began."""

    def __init__(
        self, secrets: tuple[bytes, ...], *, logs: tuple[Path, ...] = (), beside: tuple[Path, ...] = ()
    ) -> None:
        self._forms = tuple(form for secret in secrets for form in (secret, base64.b64encode(secret)) if len(form) > 3)
        self._logs = logs
        self._beside = beside
        self._sizes: dict[Path, int] = {}
        self._entries: dict[str, tuple[int, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="eyes", daemon=True)
        self.command_lines: set[tuple[str, ...]] = set()
        """Of other programs than the driver's own process: command lines with a secret in them."""

    def __enter__(self) -> Self:
        self._sizes = {path: path.stat().st_size for path in self._log_files()}
        self._entries = self._listing()
        if self._forms:
            self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def seen_in(self, text: bytes) -> bool:
        """Whether a secret is in it, raw or in base64."""
        return any(form in text for form in self._forms)

    def logs_with_secrets(self) -> list[Path]:
        """Which of the logs were written a secret."""
        found = []
        for path in self._log_files():
            try:
                with path.open("rb") as file:
                    file.seek(self._sizes.get(path, 0))
                    if self.seen_in(file.read(_LIMIT)):
                        found.append(path)
            except OSError:
                continue
        return found

    def changes(self) -> list[str]:
        """What is new or changed in these directories; hidden names are left out, as by the kubelet."""
        return sorted(os.path.basename(path) for path, now in self._listing().items() if self._entries.get(path) != now)

    def _look(self) -> None:
        while not self._stop.wait(_PAUSE):
            for pid in os.listdir("/proc"):
                if not pid.isdigit():
                    continue
                try:
                    with open(f"/proc/{pid}/cmdline", "rb") as file:
                        line = file.read(_LIMIT)
                    if self.seen_in(line) and not _is_the_drivers_own(line):
                        program, *rest = line.decode(errors="replace").split("\0")
                        self.command_lines.add(
                            (program, *(part for part in rest if part and not self._is_secret(part)))
                        )
                except OSError:
                    continue  # it has ended

    def _is_secret(self, part: str) -> bool:
        return self.seen_in(part.encode())

    def _log_files(self) -> Iterator[Path]:
        for path in self._logs:
            if path.is_dir():
                yield from (file for file in path.rglob("*") if file.is_file())
            elif path.is_file():
                yield path

    def _listing(self) -> dict[str, tuple[int, int]]:
        found = {}
        for directory in self._beside:
            for entry in os.scandir(directory):
                if not entry.name.startswith("."):
                    status = entry.stat(follow_symlinks=False)
                    found[entry.path] = (status.st_ino, status.st_mtime_ns)
        return found


def _is_the_drivers_own(line: bytes) -> bool:
    """Whether the kubelet itself made that command line: a driver, a verb, a directory below the trial's."""
    parts = line.split(b"\0")
    return any(
        part in (b"mount", b"unmount") and b"/nodeplug-check-" in parts[n - 1] for n, part in enumerate(parts) if n
    )
