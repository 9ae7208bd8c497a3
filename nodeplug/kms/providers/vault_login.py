"""The token: got by a login, renewed at half its life with jitter, got anew when it is refused or near its end.

Credentials are read from their files at each login, so that what rotates them needs to tell nobody.
"""

import random
import threading
import time
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from nodeplug.core.errors import ConfigInvalid, Error
from nodeplug.core.files import read_bounded
from nodeplug.core.secret import Secret
from nodeplug.kms.contract import Api, Call, Revoked, Surroundings, Throttled
from nodeplug.kms.providers.credentials import read_credential
from nodeplug.kms.providers.vault_http import Answer, Http

if TYPE_CHECKING:
    from nodeplug.kms.providers.vault import VaultSettings

_PATIENCE = 5.0
_NEW = 30.0  # seconds
_SHORTEST_WAIT = 1.0
_LONGEST_WAIT = 3600.0
_LAST_PART = 0.1  # of its life: then a login replaces the renewals that no longer lengthen it


class Login:
    """Holds one token for all threads; one of them at a time logs in, the others wait for it."""

    def __init__(self, settings: "VaultSettings", http: Http, surroundings: Surroundings) -> None:
        _check(settings)
        self._own = settings
        self._http = http
        self._note = surroundings.note
        self._lock = threading.Lock()
        self._token: Secret | None = None
        self._expires = 0.0  # monotonic; 0: never
        self._life = 0.0
        self._renewable = False
        self._since = 0.0  # when the token was got
        self._proven = False  # whether the server ever did something for it
        self._changed = threading.Event()
        self._stop = False
        registry = surroundings.registry
        self._logins = Counter("nodeplug_kms_vault_logins", "Logins by outcome.", ["outcome"], registry=registry)
        self._renewals = Counter("nodeplug_kms_vault_renewals", "Renewals by outcome.", ["outcome"], registry=registry)
        Gauge(
            "nodeplug_kms_vault_token_seconds",
            "Left of the token's life; -1 for one that does not end.",
            registry=registry,
        ).set_function(lambda: self._expires - time.monotonic() if self._expires else -1.0)
        self._keeper = threading.Thread(target=self._keep, name="kms-vault-token", daemon=True)
        self._keeper.start()

    def token(self, call: Call) -> Secret:
        """A token that is good as far as is known; logs in where there is none. Raises what a login raises."""
        token = self._token
        if token is not None and not (self._expires and time.monotonic() >= self._expires):
            return token
        if not self._lock.acquire(timeout=call.seconds_left()):
            raise Throttled("a login is under way and did not end in time")
        try:
            if self._token is None or (self._expires and time.monotonic() >= self._expires):
                self._log_in(call)
            assert self._token is not None
            return self._token
        finally:
            self._lock.release()

    def accepted(self, token: Secret) -> None:
        """The server did something for this token."""
        if self._token is token:
            self._proven = True

    def refused(self, token: Secret) -> bool:
        """The server said no to this token. Whether another one is worth a try.

        It is not when this one is new and nothing was ever done for it: then it is the policy that says no, and a login
        for each call would only use up secret ids and the server's patience. After a while it is: roles change.
        """
        with self._lock:
            if self._token is not token:
                return True  # it was replaced meanwhile
            if not self._proven and time.monotonic() - self._since < _NEW:
                return False
            self._token = None
            return True

    def forget(self) -> None:
        """Log in anew for the next call: the credentials may have changed."""
        with self._lock:
            self._token = None

    def close(self) -> None:
        self._stop = True
        self._changed.set()

    def _log_in(self, call: Call) -> None:
        own = self._own
        try:
            if own.auth == "token":
                token = Secret(read_credential(own.token_file, "the token file").lstrip())
                answer = self._http.ask("GET", "auth/token/lookup-self", None, token=token, call=call)
                _refuse_login(answer)
                life = float(answer.data.get("ttl") or 0)
                renewable = bool(answer.data.get("renewable"))
            else:
                path, body = self._request()
                answer = self._http.ask("POST", path, body, token=None, call=call)
                _refuse_login(answer)
                token = Secret(str(answer.auth.get("client_token", "")))
                life = float(answer.auth.get("lease_duration") or 0)
                renewable = bool(answer.auth.get("renewable"))
                if not token.reveal():
                    raise Revoked("the login's answer has no token")
        except Error:
            self._logins.labels("failed").inc()
            raise
        self._logins.labels("ok").inc()
        self._keep_token(token, life, renewable=renewable)

    def _request(self) -> tuple[str, dict[str, object]]:
        own = self._own
        mount = own.auth_mount or own.auth
        if own.auth == "approle":
            return f"auth/{mount}/login", {
                "role_id": read_credential(own.role_id_file, "the role id file").decode("utf-8", "replace").strip(),
                "secret_id": read_credential(own.secret_id_file, "the secret id file")
                .decode("utf-8", "replace")
                .strip(),
            }
        if own.auth == "jwt":
            # Written by an agent for its readers, so its rights are the agent's choice.
            try:
                jwt = read_bounded(own.jwt_file, 64 * 1024).decode("ascii", "replace").strip()
            except OSError as error:
                raise Revoked(f"the JWT file {own.jwt_file} cannot be read: {error.strerror}") from None
            return f"auth/{mount}/login", {"role": own.role, "jwt": jwt}
        return f"auth/{mount}/login", {"name": own.role} if own.role else {}

    def _keep_token(self, token: Secret, life: float, *, renewable: bool) -> None:
        self._since, self._proven = time.monotonic(), False
        self._token = token
        self._life = life
        self._expires = time.monotonic() + life if life else 0.0
        self._renewable = renewable
        self._changed.set()

    def _keep(self) -> None:
        """Renew at half of what is left, earlier by some jitter; log in anew when that gains nothing."""
        while not self._stop:
            if self._token is None or not self._expires:
                wait = _LONGEST_WAIT
            else:
                left = self._expires - time.monotonic()
                wait = min(_LONGEST_WAIT, max(_SHORTEST_WAIT, left / 2 * random.uniform(0.8, 1.0)))
            if self._changed.wait(wait):
                self._changed.clear()
                continue
            if self._token is not None and self._expires and not self._stop:
                self._prolong()

    def _prolong(self) -> None:
        call = Call(Api.V2, "renew", time.monotonic() + _PATIENCE)
        with self._lock:
            token = self._token
            if token is None:
                return
            try:
                if self._renewable and self._renew(token, call):
                    self._renewals.labels("ok").inc()
                    return
                self._log_in(call)
            except Error as error:
                self._renewals.labels("failed").inc()
                left = max(0.0, self._expires - time.monotonic())
                self._note(f"the token was not prolonged and ends in {left:.0f} s: {error}", level="warning")

    def _renew(self, token: Secret, call: Call) -> bool:
        """Whether the token lives substantially longer now: near its maximum a renewal gives ever less."""
        answer = self._http.ask("POST", "auth/token/renew-self", {}, token=token, call=call)
        if answer.status in (400, 403):
            return False
        answer.raise_for_trouble()
        life = float(answer.auth.get("lease_duration") or 0)
        left = self._expires - time.monotonic()
        if life <= left + self._life * _LAST_PART:
            return False
        self._expires = time.monotonic() + life
        return True


def _refuse_login(answer: Answer) -> None:
    if answer.status in (400, 401, 403, 404):
        raise Revoked(
            f"the login was refused (HTTP status {answer.status})", hint="look at the credentials and at the role"
        )
    answer.raise_for_trouble()


def _check(settings: "VaultSettings") -> None:
    needed = {
        "token": ("token_file",),
        "approle": ("role_id_file", "secret_id_file"),
        "jwt": ("jwt_file", "role"),
        "cert": ("cert_file",),
    }[settings.auth]
    missing = [
        (f"kms.provider.{name}", f'needed for auth = "{settings.auth}"')
        for name in needed
        if not getattr(settings, name)
    ]
    if missing:
        raise ConfigInvalid("the login's settings are not complete", problems=missing)
