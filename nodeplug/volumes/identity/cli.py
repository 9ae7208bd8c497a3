"""`nodeplug identity ...`: the authority of a node and the roots of a trust domain. Needs no daemon."""

import json
import os
import sys
import time

import click
from rich.console import Console
from rich.table import Table

import nodeplug
from nodeplug.core import config, document, files, paths
from nodeplug.core.errors import ConfigInvalid, Refused, from_os
from nodeplug.core.secret import Secret
from nodeplug.volumes.identity import authority as rules
from nodeplug.volumes.identity import bundles, certificates, issuing, node, signing, spiffe
from nodeplug.volumes.identity.operator import Operator
from nodeplug.volumes.identity.store import Store, check_private
from nodeplug.volumes.policy import IdentityLimits, Policy

_config = click.option(
    "--config", "settings", default=paths.ETC, show_default=True, metavar="DIR", help="Where the node's settings are."
)
_root = click.option("--root", required=True, metavar="DIR", help="Where the roots are: best on no node at all.")
_passphrase = click.option("--passphrase-file", default="", metavar="FILE", help="Seals the roots' keys; 0600.")
_domain = click.option("--trust-domain", required=True, metavar="NAME", help="Such as example.org; it cannot change.")
_constraints = click.option(
    "--name-constraints/--no-name-constraints",
    default=True,
    show_default=True,
    help="Whether certificates say that they are for this trust domain only. Some verifiers refuse all that do.",
)
_key_type = click.option(
    "--key-type", default="ECDSAP256", show_default=True, type=click.Choice(signing.KEY_TYPES), help="Of the new key."
)
_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON value instead of text.")
_LARGEST = 64 << 10


@click.group()
def cli() -> None:
    """Identities of pods: the node's authority that signs them, and the roots above it."""


def _limits(settings: str) -> IdentityLimits:
    return config.section(Policy, config.load(settings), "volumes", settings).identity


def _now() -> int:
    return int(time.time())


def _name(trust_domain: str) -> str:
    try:
        return spiffe.parse_trust_domain(trust_domain)
    except ValueError as error:
        raise ConfigInvalid(f"--trust-domain: {error}") from None


def _operator(root: str, passphrase_file: str) -> Operator:
    secret = None
    if passphrase_file:
        check_private(passphrase_file)
        secret = Secret(_read(passphrase_file).rstrip(b"\r\n"))
        if not secret.reveal():
            raise ConfigInvalid(f"the passphrase in {passphrase_file} is empty")
    return Operator(os.path.abspath(root), passphrase=secret)


def _read(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read(_LARGEST)
    try:
        return files.read_bounded(path, node.LARGEST)
    except OSError as error:
        raise from_os(error, f"cannot read {path}") from None


def _write(path: str, text: str, mode: int) -> None:
    if path == "-":
        click.echo(text, nl=False)
        return
    try:
        files.write_atomic(os.path.abspath(path), text.encode(), mode)
    except OSError as error:
        raise from_os(error, f"cannot write {path}") from None


def _noted(store: Store) -> Store:
    """The store, which knows from now on that this interpreter can sign."""
    try:
        issuing.note_interpreter(store, path=os.path.dirname(os.path.dirname(os.path.abspath(nodeplug.__file__))))
    except OSError as error:
        raise from_os(error, f"cannot write to {store.directory}") from error
    return store


@cli.command("init-root")
@_domain
@_root
@click.option("--days", default=3650, show_default=True, type=click.IntRange(2, 36500), help="How long it is valid.")
@_key_type
@_constraints
@_passphrase
def init_root(
    trust_domain: str, root: str, days: int, key_type: str, name_constraints: bool, passphrase_file: str
) -> None:
    """Make the first root of a trust domain."""
    operator = _operator(root, passphrase_file)
    made = operator.init(_name(trust_domain), now=_now(), days=days, key_type=key_type, constrained=name_constraints)
    click.echo(f"root {made.active} of {made.trust_domain} is in {operator.directory}")
    click.echo("For each node: `nodeplug identity request` there, `nodeplug identity issue-node-ca` here,")
    click.echo("`nodeplug identity accept` there. Keep a copy of the directory where nobody finds it.")


@cli.command("roll-root")
@_root
@_passphrase
@_config
@click.option("--all-nodes-changed", is_flag=True, help="A day ago, every node had an authority under the new root.")
def roll_root(root: str, passphrase_file: str, settings: str, all_nodes_changed: bool) -> None:
    """Replace the root without a break, one step each time: make the next, sign with it, drop the old.

    Says what has to happen before the following step, which is refused until enough time has passed.
    """
    operator = _operator(root, passphrase_file)
    before, now = operator.load(), _now()
    if before.coming:
        after = operator.activate(now=now, overlap=int(_limits(settings).overlap))
        click.echo(f"root {after.active} signs from now on. For each node: request, issue-node-ca, accept.")
        click.echo("When all have changed, and a day later, run this again with --all-nodes-changed.")
    elif len(before.roots) > 1:
        after = operator.drop(now=now, used=now if all_nodes_changed else None)
        for gone in {each.id for each in before.roots} - {each.id for each in after.roots}:
            click.echo(f"root {gone} is gone. On each node: nodeplug identity drop-root {gone}")
    else:
        after = operator.prepare(now=now)
        click.echo(f"root {after.coming} is made, and signs nothing yet. Take it to every node:")
        click.echo(
            f"  nodeplug identity bundle --root {root} > roots.pem, and `nodeplug identity accept roots.pem` there"
        )
        click.echo("Once every pod has read it, after a day, run this again.")


@cli.command("issue-node-ca")
@_root
@click.option("--request", default="", metavar="FILE", help="What `nodeplug identity request` wrote; - for stdin.")
@click.option("--node", "name", default="", metavar="NAME", help="Without a request: make the key here, for that node.")
@click.option("--days", default=90, show_default=True, type=click.IntRange(1, 3650), help="How long it is valid.")
@click.option("--out", required=True, metavar="FILE", help="For `nodeplug identity accept` on the node.")
@_key_type
@_passphrase
def issue_node_ca(root: str, request: str, name: str, days: int, out: str, key_type: str, passphrase_file: str) -> None:
    """Sign a node's authority: it may sign the identities of pods, and nothing else."""
    if bool(request) == bool(name):
        raise ConfigInvalid("name either --request (the key stays on the node) or --node (the key is made here)")
    operator = _operator(root, passphrase_file)
    if request:
        made = operator.sign(_read(request).decode("utf-8", "replace"), now=_now(), days=days)
    else:
        made = operator.sign_new(name, now=_now(), days=days, key_type=key_type)
    _write(out, made.pem, 0o600 if name else 0o644)
    click.echo(f"{made.certificate.subject}, valid until {_date(made.certificate.not_after)}: {out}")
    if name:
        click.echo("The file has the node's private key: carry it as one, and remove it when the node has it.")


@cli.command()
@click.option("--root", default="", metavar="DIR", help="The roots of this directory instead of this node's bundle.")
@click.option(
    "--format", "form", default="pem", show_default=True, type=click.Choice(["pem", "spiffe"]), help="What to print."
)
@_config
def bundle(root: str, form: str, settings: str) -> None:
    """Print every root that verifiers need, as PEM or as a SPIFFE bundle for other trust domains."""
    if root:
        held = _operator(root, "").load()
        shown, sequence = held.bundle, held.sequence
    else:
        found = Store(_limits(settings).directory).load()
        shown, sequence = tuple(each.pem for each in found.roots), found.sequence
    if form == "pem":
        click.echo("".join(shown), nl=False)
    else:
        roots = [each for pem in shown for each in certificates.read(pem)]
        click.echo(json.dumps(bundles.as_jwks(roots, sequence), indent=2))


@cli.command()
@_domain
@click.option("--root-days", default=3650, show_default=True, type=click.IntRange(2, 36500), help="Of the root.")
@_constraints
@_config
def init(trust_domain: str, root_days: int, name_constraints: bool, settings: str) -> None:
    """Root and authority in one, for a node that is alone in its trust domain. nodeplugd replaces both in time."""
    limits = _limits(settings)
    store = Store(limits.directory)
    made = node.init(
        store,
        _name(trust_domain),
        now=_now(),
        root_days=root_days,
        node_days=limits.node_days,
        constrained=name_constraints,
    )
    _noted(store)
    click.echo(f"this node signs identities of {made.trust_domain}; it is alone, and has its root in {store.root}")


@cli.command()
@click.option("--node", "name", default="", metavar="NAME", help="The node's name; by default its host name.")
@click.option("--out", default="-", show_default=True, metavar="FILE", help="Where to write it; - for stdout.")
@_key_type
@_config
def request(name: str, out: str, key_type: str, settings: str) -> None:
    """Write a request to sign this node's authority. Its key stays here; repeating it asks for the same key."""
    store = Store(_limits(settings).directory)
    text = node.request(store, name=name, key_type=key_type)
    _noted(store)
    _write(out, text, 0o644)


@cli.command()
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@_config
def accept(file: str, settings: str) -> None:
    """Take what the operator's machine wrote: this node's authority, or new roots. Nothing there is taken away."""
    limits = _limits(settings)
    store = Store(limits.directory)
    now = _now()
    found = node.accept(store, _read(file), now=now, overlap=int(limits.overlap))
    _noted(store)
    if found.coming is not None:
        click.echo(f"{found.coming.subject} signs from {_date(found.coming.since)} on, when all pods have its root")
    elif found.signer is not None:
        click.echo(f"{found.signer.subject} signs until {_date(found.signer.not_after)}")
    click.echo(f"the bundle has {len(found.roots)} roots: {', '.join(each.id for each in found.roots)}")


@cli.command("drop-root")
@click.argument("root")
@_config
def drop_root(root: str, settings: str) -> None:
    """Take a root out of the bundles, as soon as nothing is valid that this node signed under it."""
    found = node.drop_root(Store(_limits(settings).directory), root, now=_now())
    left = found.find(root)
    click.echo(f"root {root} " + (f"leaves the bundles at {_date(left.until)}" if left else "has left the bundles"))


@cli.command()
@_as_json
@_config
def status(as_json: bool, settings: str) -> None:
    """The trust domain, its roots, and who signs until when."""
    limits = _limits(settings)
    store = Store(limits.directory)
    found = store.load()
    if os.access(store.directory, os.W_OK):
        _noted(store)
    if as_json:
        click.echo(json.dumps({"directory": store.directory, **document.encode(found)}, indent=2))
        return
    now = _now()
    click.echo(f"trust domain  {found.trust_domain}, in {store.directory}" + (", alone" if found.alone else ""))
    table = Table(box=None, pad_edge=False)
    for heading in ("what", "which", "since", "valid until", ""):
        table.add_column(heading)
    for root in found.roots:
        leaves = f"leaves at {_date(root.until)}" if root.until else ""
        table.add_row("root", root.id, _date(root.since), _date(root.not_after), leaves)
    for signer, what in ((found.signer, "signs"), (found.coming, "will sign")):
        if signer is not None:
            worn = "replace it soon" if rules.is_worn(signer, now) and not found.alone else ""
            table.add_row(what, signer.subject, _date(signer.since), _date(signer.not_after), worn)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if found.signer is None:
        raise Refused("this node has roots and no authority to sign with", hint=rules.HOW)


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds)) if seconds else "-"
