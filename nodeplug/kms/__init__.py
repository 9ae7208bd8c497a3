"""The KMS door: what an API server calls to encrypt what it stores, v2 and v1beta1 on one socket.

A provider of your own is three methods (docs/kms.md):

    from nodeplug.kms import Encrypted, Provider, run
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nodeplug.kms.contract import Call, Encrypted, Provider
    from nodeplug.kms.main import run

__all__ = ["Call", "Encrypted", "Provider", "run"]


def __getattr__(name: str) -> object:
    # On use: the commands and the key ring need no gRPC, which costs more to import than they take to run.
    if name == "run":
        from nodeplug.kms import main

        return main.run
    if name in __all__:
        from nodeplug.kms import contract

        return getattr(contract, name)
    raise AttributeError(name)
