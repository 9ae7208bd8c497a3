"""The chore of nodeplugd that keeps identities: replaces certificates at half of their life, authorities in time.

What is due stands in the notes (`notes`) and in the authority's document; nothing is remembered here but who has been
told what. A failure leaves the old certificate and is tried again, ever later.
"""

from __future__ import annotations

import os

from nodeplug.core import config, paths
from nodeplug.core.chore import Chore
from nodeplug.core.errors import Error, Unavailable
from nodeplug.core.files import range_lock
from nodeplug.volumes import service, state
from nodeplug.volumes.identity import bundles, certificates, issuing, node, notes, renewal
from nodeplug.volumes.identity.renewal import Place
from nodeplug.volumes.identity.store import Store
from nodeplug.volumes.identity.volume import CHORE
from nodeplug.volumes.policy import Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from nodeplug.core.chore import Turn
    from nodeplug.volumes.identity.notes import Note

_TIMEOUT = 20.0


class IdentityChore(Chore):
    """See `core.chore.Chore`."""

    name = CHORE
    directory = notes.DIRECTORY

    def __init__(self, settings: Mapping[str, object]) -> None:
        limits = config.section(Policy, dict(settings), "volumes", paths.ETC).identity
        self._limits = limits
        self._store = Store(limits.directory)
        self._place = Place(
            directory=limits.directory,
            log=limits.log,
            host_certificates=limits.host_certificates,
            python=limits.python,
        )
        worker = settings.get("worker")
        self._guest = bool(worker.get("host")) if isinstance(worker, dict) else False
        """Whether the files of the node are another mount namespace's, where our own interpreter is not to be found."""
        if self._guest and certificates.can_sign():
            certificates.load_all()

    def run(self, turn: Turn) -> float | None:
        now = int(turn.now)
        found, unreadable = notes.every()
        for id in unreadable:
            turn.fail(id, "its note cannot be understood, so its certificate is not replaced; unpublish the volume")
        if not found and not self._store.exists():
            return None
        times = [self._keep_authority(turn, now)]
        roots, system = self._shown(turn, found)
        for note in found:
            if turn.stopping:
                break
            times.append(self._keep(turn, note, roots=roots, system=system, now=now))
        return min((max(0.0, when - now) for when in times if when is not None), default=None)

    def _keep_authority(self, turn: Turn, now: int) -> float | None:
        """When to look at it again."""
        if not self._store.exists():
            return None
        try:
            if not self._guest:
                self._note_interpreter()
            done = node.maintain(
                self._store, now=now, node_days=self._limits.node_days, overlap=int(self._limits.overlap)
            )
        except (Error, OSError) as error:
            turn.fail("authority", str(error))
            return None
        for sentence in done.done:
            turn.note(sentence)
        if done.trouble:
            turn.fail("authority", done.trouble)
        return None if done.after is None else now + done.after

    def _note_interpreter(self) -> None:
        if certificates.can_sign():
            import nodeplug

            package = os.path.dirname(os.path.abspath(nodeplug.__file__))
            issuing.note_interpreter(self._store, path=os.path.dirname(package))

    def _shown(self, turn: Turn, found: list[Note]) -> tuple[str, str]:
        """The marks of the roots and of the host's certificates as they are now; empty where that is not known."""
        roots = system = ""
        try:
            if self._store.exists():
                roots = renewal.mark("".join(each.pem for each in self._store.load().roots))
            if any(note.wanted.system for note in found):
                host = bundles.host_certificates(self._place.host_certificates)
                system = renewal.mark(host.decode("latin-1"))
        except Unavailable as error:
            turn.fail("host certificates", str(error))
        except Error:
            pass  # told of already
        return roots, system

    def _keep(self, turn: Turn, note: Note, *, roots: str, system: str, now: int) -> float | None:
        """Replace the certificate if that is due; when to look again."""
        when = renewal.due(note, roots=roots, system=system, now=now)
        if when > now:
            if note.failures:
                turn.fail(note.target, _told(note, now))
            return when
        try:
            with range_lock(service.LOCK, note.id, timeout=_TIMEOUT):
                if note.id not in state.ids():
                    notes.remove(note.id)  # its publish was killed, or it has just ended
                    return None
                after = renewal.replace(note, self._place, now=now, timeout=_TIMEOUT)
        except (Error, OSError) as error:
            after = renewal.put_off(note, error, now)
            turn.fail(note.target, _told(after, now))
            try:
                notes.write(after)
            except OSError:
                pass  # then it is tried again by an older note
            return after.retry
        return after.renew


def _told(note: Note, now: int) -> str:
    left = note.not_after - now
    ends = f"expires in {left // 60} min" if left > 0 else "has expired"
    return f"the certificate of {note.name} for {note.wanted.pod} {ends} and cannot be replaced: {note.error}"
