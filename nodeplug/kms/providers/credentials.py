"""Files that show a backend who this node is: a PIN, a token, the two halves of an AppRole."""

from nodeplug.core.errors import Error
from nodeplug.kms.contract import Revoked
from nodeplug.kms.keyring.seals import read_private


def read_credential(path: str, what: str) -> bytes:
    """The file's content without the white space at its end.

    Raises `Revoked` for whatever keeps it from being read: what a caller and an operator have to be told is that we
    have no access, not that something was not found.
    """
    try:
        return read_private(path, what).rstrip()
    except Error as error:
        raise Revoked(error.message, hint=error.hint) from None
