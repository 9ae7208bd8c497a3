"""How `nodeplug/pb` is made from `protos/`, with the grpcio-tools that pyproject pins.

    python -m tests.pb

writes it anew after a change of a .proto; a test makes it again elsewhere and compares.
"""

import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
COMMITTED = ROOT / "nodeplug" / "pb"


def generate(destination: Path) -> None:
    """Write the modules of every .proto below `destination`, which stands for the directory that holds `nodeplug`.

    protoc is told that `protos` is mounted at `nodeplug/pb`: imports and pool names follow from that.
    """
    from grpc_tools import protoc  # not at import: comparing trees needs no compiler

    names = [f"nodeplug/pb/{path.relative_to(PROTOS)}" for path in sorted(PROTOS.rglob("*.proto"))]
    google = files("grpc_tools") / "_proto"
    code = protoc.main(
        [
            "protoc",
            f"--proto_path=nodeplug/pb={PROTOS}",
            f"--proto_path={google}",
            f"--python_out={destination}",
            f"--pyi_out={destination}",
            *names,
        ]
    )
    if code:
        raise SystemExit(f"protoc ended with code {code}")
    for name in names:
        contract = (destination / name).parent
        (contract / "__init__.py").write_text(
            f'"""Messages of the {contract.name} contract, one module a version."""\n'
        )


def generated(pb: Path) -> Iterator[Path]:
    """The files that `generate` answers for, relative to `pb`: all but the room's own `__init__.py`."""
    for path in sorted([*pb.rglob("*.py"), *pb.rglob("*.pyi")]):
        if path.parent != pb:
            yield path.relative_to(pb)


def main() -> None:
    for stale in list(generated(COMMITTED)):
        (COMMITTED / stale).unlink()
    generate(ROOT)
    for path in generated(COMMITTED):
        sys.stdout.write(f"nodeplug/pb/{path}\n")
