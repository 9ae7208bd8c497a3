"""A provider whose calls, while its gate is shut, do not return and heed no deadline: a token's module that hangs.

python -m tests.kms.stuck --config FILE
"""

from __future__ import annotations

import os
import time

from nodeplug.core import document
from nodeplug.core.record import Record, key
from nodeplug.kms import Call, Encrypted, Provider, run


class StuckSettings(Record):
    """The gate is shut while there is a file at that path."""

    gate: str = key(document.absolute_path)
    concurrency: int = key(document.integer(1, 64), default=2)


class Stuck(Provider):
    """Gives back what it gets, reversed."""

    Settings = StuckSettings

    @property
    def concurrency(self) -> int:
        assert isinstance(self.settings, StuckSettings)
        return self.settings.concurrency

    def _pass(self) -> None:
        assert isinstance(self.settings, StuckSettings)
        while os.path.exists(self.settings.gate):
            time.sleep(0.01)

    def key_id(self, call: Call) -> str:
        self._pass()
        return "stuck-1"

    def encrypt(self, plaintext: bytes, key_id: str, call: Call) -> Encrypted:
        self._pass()
        return Encrypted(plaintext[::-1], key_id)

    def decrypt(self, encrypted: Encrypted, call: Call) -> bytes:
        self._pass()
        return encrypted.ciphertext[::-1]

    def reload(self) -> None:
        raise ValueError("what it says may be anything")


if __name__ == "__main__":
    run(Stuck)
