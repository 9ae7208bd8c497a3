"""From the `type` in the settings to a provider's class, imported on use."""

import importlib

from nodeplug.core.errors import ConfigInvalid
from nodeplug.kms.contract import Provider

TYPES = {
    "local": "nodeplug.kms.providers.local:Local",
    "pkcs11": "nodeplug.kms.providers.pkcs11:Pkcs11",
    "vault": "nodeplug.kms.providers.vault:Vault",
    "aws": "nodeplug.kms.providers.aws:Aws",
}


def find(kind: str) -> type[Provider]:
    """The class for a name of the table or a "package.module:Class".

    Raises `ConfigInvalid` when there is none, when the package it needs is not installed, or when it is no provider.
    """
    target = TYPES.get(kind, kind)
    module_name, colon, class_name = target.partition(":")
    if not colon:
        known = ", ".join(f'"{name}"' for name in TYPES)
        raise ConfigInvalid(f'there is no provider type "{kind}"', hint=f'use {known} or "package.module:Class"')
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError as error:
        raise ConfigInvalid(
            f'the provider "{kind}" cannot be imported: {error}',
            hint=f'install what it needs: pip install "nodeplug[{kind}]"' if kind in TYPES else "is it installed here?",
        ) from None
    if not (isinstance(found, type) and issubclass(found, Provider)):
        raise ConfigInvalid(f"{target} is not a subclass of nodeplug.kms.Provider")
    return found
