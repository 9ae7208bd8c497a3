"""`nodeplug kms ...`: the key ring's commands. They read the same settings file as the daemon, and need no daemon."""

import os
import stat
import sys
import time
from collections.abc import Callable
from typing import IO

import click
from rich.console import Console
from rich.table import Table

from nodeplug.core.errors import ConfigInvalid
from nodeplug.kms import settings
from nodeplug.kms.contract import Api, Encrypted, KeyUnknown
from nodeplug.kms.keyring import cipher, commands, evidence
from nodeplug.kms.keyring.ring import Entry, Ring
from nodeplug.kms.keyring.store import Opened, Store
from nodeplug.kms.providers.local import Local, LocalSettings, open_store

_config = click.option(
    "--config", default=settings.CONFIG, show_default=True, metavar="FILE", help="The daemon's settings file."
)
_key = click.option("--key", "key_id", required=True, metavar="ID", help="The key's id, or its generation.")
_passphrase = click.option(
    "--for", "passphrase_file", required=True, metavar="PASSPHRASE-FILE", help="Seals the export; 0600."
)


@click.group()
def cli() -> None:
    """The KMS provider's key ring: keys, their rotation, their backup."""


def _store(path: str) -> Store:
    found = settings.load(path)
    provider, own = settings.provider_settings(found, path)
    if provider is not Local or not isinstance(own, LocalSettings):
        raise ConfigInvalid(f'{path}: kms.provider.type is not "local"; its keys are not kept here')
    return open_store(own, os.environ)


def _now() -> int:
    return int(time.time())


def _say(text: str) -> None:
    click.echo(text)


def _next_for(ring: Ring, entry: Entry) -> None:
    """What to do after a key was added or carried here."""
    if ring.nodes > 1:
        _say(f"{ring.nodes} nodes share this ring: carry the key to each of them (export here, import --merge there).")
        _say(f"When all show the fingerprint {ring.fingerprint}, run on each:")
        _say(f"  nodeplug kms activate --key {ring.key_id(entry)} --confirm {ring.fingerprint}")
    else:
        _say(f"Put it to use with: nodeplug kms activate --key {ring.key_id(entry)}")


@cli.command()
@_config
@click.option("--nodes", default=1, show_default=True, type=click.IntRange(1, 1000), help="API servers that share it.")
def init(config: str, nodes: int) -> None:
    """Create the key ring that the settings name, with one active key."""
    store = _store(config)
    ring = commands.init(store, nodes=nodes, now=_now())
    _say(f"created {store.path}, sealed by {store.seal.kind}; active: {ring.key_id(ring.entries[0])}")
    _say("Back it up now: nodeplug kms export --for PASSPHRASE-FILE FILE")
    if nodes > 1:
        _say("On the other nodes, start from that export: nodeplug kms import --for PASSPHRASE-FILE FILE")


@cli.command()
@_config
@click.argument("count", type=click.IntRange(1, 1000))
def nodes(config: str, count: int) -> None:
    """Say how many nodes share the ring from now on."""
    ring = commands.set_nodes(_store(config), count)
    _say(f"{ring.nodes} nodes share the ring")


@cli.command()
@_config
def status(config: str) -> None:
    """The keys, their states, and the fingerprint to compare between nodes."""
    store = _store(config)
    ring = store.load().ring
    _say(f"ring         {ring.ring_id}, revision {ring.revision}, shared by {ring.nodes}")
    _say(f"fingerprint  {ring.fingerprint}")
    _say(f"active       {ring.key_id(ring.active) if ring.active else 'none'}")
    table = Table(box=None, pad_edge=False)
    for heading in ("key", "state", "since", "created", "last use here"):
        table.add_column(heading)
    for line in commands.key_lines(store, ring):
        table.add_row(line.key_id, line.state, _date(line.since), _date(line.created), _date(line.last_use))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds)) if seconds else "-"


@cli.command("add-key")
@_config
def add_key(config: str) -> None:
    """Add a key. It decrypts at once and encrypts only after `activate`."""
    ring, entry = commands.add_key(_store(config), now=_now())
    _say(f"added {ring.key_id(entry)}, pending; fingerprint {ring.fingerprint}")
    _next_for(ring, entry)


@cli.command()
@_config
@click.option("--key", "key_id", default="", metavar="ID", help="The key; without it, the pending one.")
@click.option("--confirm", default="", metavar="FINGERPRINT", help="As `status` shows it on every node.")
def activate(config: str, key_id: str, confirm: str) -> None:
    """Encrypt with the pending key from now on; what was active still decrypts."""
    ring, entry = commands.activate(_store(config), key_id, confirm=confirm, now=_now())
    _say(f"{ring.key_id(entry)} is active; API servers take it over within a minute")
    _say("Then rewrite what is stored (docs/kms.md, storage migration) before you retire the old key.")


@cli.command()
@_config
@_key
@click.option("--everywhere", default="", metavar="ID", help="The key that `status` shows as active on every node.")
def retire(config: str, key_id: str, everywhere: str) -> None:
    """Put a key out of use, given proof on standard input that nothing needs it.

    \b
    etcdctl get /registry --prefix -w json | nodeplug kms retire --key ID
    """
    proof = evidence.read(_input("retire"), taken=_taken())
    ring, entry = commands.retire(_store(config), key_id, proof, everywhere=everywhere, now=_now())
    _say(f"{ring.key_id(entry)} is retired: kept, but not used. `nodeplug kms reinstate` brings it back.")


@cli.command()
@_config
@_key
def reinstate(config: str, key_id: str) -> None:
    """Let a retired key decrypt again."""
    ring, entry = commands.reinstate(_store(config), key_id, now=_now())
    _say(f"{ring.key_id(entry)} is {ring.state(entry).value}")


@cli.command()
@_config
@_key
@click.option("--yes", is_flag=True, help="Do not ask.")
def destroy(config: str, key_id: str, yes: bool) -> None:
    """Remove a retired key from this node for good. Only an export has it then."""
    store = _store(config)
    ring = store.load().ring
    name = ring.key_id(ring.find(key_id))
    ring.destroy(ring.find(key_id), _now())  # refuse before asking
    if not yes:
        click.confirm(f"Destroy {name} on this node?", abort=True)
    ring, entry = commands.destroy(store, key_id, now=_now())
    _say(f"{ring.key_id(entry)} is destroyed on this node")


@cli.command()
@_config
@click.option("--list", "as_list", is_flag=True, help="Print the list of keys in use, which `retire` takes elsewhere.")
def verify(config: str, as_list: bool) -> None:
    """Check the ring, and with a dump on standard input, what each key protects and whether it decrypts.

    \b
    etcdctl get /registry --prefix -w json | nodeplug kms verify
    """
    if as_list:
        click.echo(evidence.read(_input("verify --list"), taken=_taken()).as_list(), nl=False)
        return
    store = _store(config)
    opened = store.load()
    ring = opened.ring
    commands.checker(opened)
    _say(f"{store.path}: revision {ring.revision}, {len(ring.entries)} keys, all open and fit their check values")
    if not _given():
        return
    found = evidence.read(sys.stdin.buffer, taken=_taken(), check=_tries(opened))
    table = Table(box=None, pad_edge=False)
    table.add_column("key")
    table.add_column("state")
    table.add_column("objects", justify="right")
    states = {ring.key_id(entry): ring.state(entry).value for entry in ring.entries}
    for name in [*states, *sorted(set(found.objects) - set(states))]:
        table.add_row(name, states.get(name, "unknown here"), str(found.objects.get(name, 0)))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    _say(f"{found.foreign} other objects; {found.seeds} different seeds tried")
    for reason, count in sorted(found.failures.items()):
        _say(f"NOT READABLE: {count} objects: {reason}")
    if found.failures:
        raise click.ClickException(f"{sum(found.failures.values())} objects cannot be read with this ring")


def _tries(opened: Opened) -> Callable[[Encrypted, Api], None]:
    keys = {name: cipher.MessageKey(key) for name, key in commands.checker(opened).items()}

    def check(encrypted: Encrypted, api: Api) -> None:
        key = keys.get(encrypted.key_id)
        if key is None:
            raise KeyUnknown(f"the key {encrypted.key_id} is not in this ring")
        key.decrypt(encrypted.ciphertext, cipher.bind(api, encrypted.key_id, opened.ring.ring_id))

    return check


@cli.command()
@_config
@_passphrase
@click.argument("file", type=click.Path(dir_okay=False))
def export(config: str, passphrase_file: str, file: str) -> None:
    """Write all keys to FILE, sealed by a passphrase, and read it back: the backup, and the way to other nodes."""
    ring = commands.export(
        _store(config), os.path.abspath(file), passphrase_file=os.path.abspath(passphrase_file), now=_now()
    )
    _say(f"wrote {file} and read it back; fingerprint {ring.fingerprint}")
    _say("Keep the passphrase somewhere else than the file.")


@cli.command("import")
@_config
@click.option("--for", "passphrase_file", default="", metavar="PASSPHRASE-FILE", help="The export's passphrase; 0600.")
@click.option("--merge", is_flag=True, help="Bring what this ring lacks; nothing here changes its state.")
@click.option("--accept-rollback", is_flag=True, help="This node was restored: go on with a new, higher generation.")
@click.argument("file", type=click.Path(dir_okay=False), required=False)
def import_(config: str, passphrase_file: str, merge: bool, accept_rollback: bool, file: str | None) -> None:
    """Bring in another node's export; on a node without a ring, start from it."""
    if file and not passphrase_file:
        raise ConfigInvalid("an export is sealed by a passphrase", hint="give its file with --for")
    before, ring = commands.import_(
        _store(config),
        os.path.abspath(file) if file else "",
        passphrase_file=os.path.abspath(passphrase_file) if passphrase_file else "",
        merge=merge,
        accept_rollback=accept_rollback,
        now=_now(),
    )
    known = {entry.generation for entry in before.entries} if before else set()
    for entry in ring.entries:
        if entry.generation not in known:
            _say(f"{ring.key_id(entry)}: {ring.state(entry).value}")
    _say(f"fingerprint {ring.fingerprint}; active: {ring.key_id(ring.active) if ring.active else 'none'}")
    pending = ring.pending()
    if pending is not None:
        _next_for(ring, pending)


def _given() -> bool:
    """Whether something is piped or redirected in."""
    mode = os.fstat(0).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _input(command: str) -> IO[bytes]:
    if not _given():
        raise ConfigInvalid(
            f"{command} reads a dump of etcd from standard input",
            hint=f"etcdctl get /registry --prefix -w json | nodeplug kms {command}",
        )
    return sys.stdin.buffer


def _taken() -> float:
    """When the dump on standard input was taken: a file's last change, else now."""
    status = os.fstat(0)
    return status.st_mtime if stat.S_ISREG(status.st_mode) else time.time()
