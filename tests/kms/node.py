"""A control-plane node in a directory: settings, key ring, the daemon as a process of its own, and its commands."""

from __future__ import annotations

import os
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from nodeplug.kms import settings
from nodeplug.kms.keyring.ring import Ring
from nodeplug.kms.keyring.store import Store
from nodeplug.kms.providers.local import LocalSettings, open_store
from tests.child import Finished, Process, run, until
from tests.examples import ROOT
from tests.ledger import Ledger

DAEMON = ROOT / "bin" / "nodeplug-kms"
COMMAND = ROOT / "bin" / "nodeplug"


def daemon_argv(config: Path) -> list[str]:
    return [sys.executable, "-I", str(DAEMON), "--config", str(config)]


@dataclass
class Node:
    """`provider` replaces the lines of [kms.provider]; `more` is added to [kms]."""

    ledger: Ledger
    provider: str = ""
    more: str = ""
    directory: Path = field(init=False)
    process: Process | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.directory = self.ledger.directory()
        self.write_config()

    @property
    def config(self) -> Path:
        return self.directory / "kms.toml"

    @property
    def socket(self) -> Path:
        return self.directory / "run" / "kms.sock"

    @property
    def health(self) -> Path:
        return self.directory / "run" / "health.sock"

    @property
    def keyring(self) -> Path:
        return self.directory / "ring" / "keyring.json"

    def write_config(self) -> None:
        local = f'type = "local"\nkeyring = "{self.keyring}"\nseal = "plain"\n'
        self.config.write_text(
            f'[kms]\nsocket = "{self.socket}"\napis = ["v2", "v1beta1"]\n{self.more}\n'
            f'[kms.health]\nlisten = "{self.health}"\n[kms.provider]\n{self.provider or local}'
        )

    def kms(self, *arguments: str | Path, stdin: bytes | None = None) -> Finished:
        """`nodeplug kms ...` as a process; standard input is closed where there is none to give."""
        words = [str(argument) for argument in arguments]
        argv = [sys.executable, "-I", str(COMMAND), "kms", words[0], "--config", str(self.config), *words[1:]]
        if stdin is None:
            argv = ["sh", "-c", 'exec "$@" </dev/null', "sh", *argv]
        return run(argv, stdin=stdin or b"")

    def store(self) -> Store:
        found = settings.load(str(self.config))
        _, own = settings.provider_settings(found, str(self.config))
        assert isinstance(own, LocalSettings)
        return open_store(own, {})

    def ring(self) -> Ring:
        return self.store().load().ring

    def start(self, **environ: str) -> Process:
        """The daemon, up to the moment it answers."""
        process = self.ledger.start(daemon_argv(self.config), env={**os.environ, **environ})
        until(lambda: self.answers() or not process.running(), "the socket answers", timeout=20)
        assert process.running(), process.output()
        self.process = process
        return process

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.signal(number)
        return self.process.wait()

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def page(self, path: str) -> str:
        """One of the health pages, head and body."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(self.health))
            client.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
            parts = []
            while part := client.recv(65536):
                parts.append(part)
        return b"".join(parts).decode()

    def active(self) -> str:
        ring = self.ring()
        return ring.key_id(ring.active) if ring.active else ""
