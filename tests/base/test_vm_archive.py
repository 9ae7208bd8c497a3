"""The archive that the emulated machine boots from is one that others can read; which tests it is given."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.child import run
from tests.needs import needs
from tests.vm.__main__ import shared
from tests.vm.initrd import write
from tests.vm.kernel import Kernel


@needs("program:busybox", "file:/bin/busybox")
def test_busybox_reads_the_archive_and_dependencies_come_first(directory: Path) -> None:
    modules = directory / "modules"
    modules.mkdir()
    lines = [
        "virtiofs.ko: fuse.ko",
        "fuse.ko:",
        "overlay.ko:",
        "virtio_pci.ko: virtio.ko ring.ko",
        "virtio.ko: ring.ko",
    ]
    (modules / "modules.dep").write_text("\n".join([*lines, "ring.ko:", ""]))
    for name in ("virtiofs", "fuse", "overlay", "virtio_pci", "virtio", "ring"):
        (modules / f"{name}.ko").write_bytes(name.encode() * 5)
    script = 'echo it\'s "me" $HOME'
    write(directory / "initrd", Kernel("6.1.0", directory / "vmlinuz", modules), script, marker="up")
    archive = (directory / "initrd").read_bytes()
    run(["busybox", "cpio", "-idm"], stdin=archive, cwd=directory).ok()
    assert (directory / "modules" / "ring.ko").read_bytes() == b"ring" * 5
    init = (directory / "init").read_text()
    assert "for module in ring.ko virtio.ko virtio_pci.ko fuse.ko virtiofs.ko overlay.ko;" in init
    run(["sh", "-n", str(directory / "init")]).ok()


def test_files_are_shared_among_machines_by_their_number_of_tests() -> None:
    files = Counter({"a": 5, "b": 4, "c": 3, "d": 1})
    assert shared(files, 2) == [["a", "d"], ["b", "c"]]
    assert shared(files, 1) == [["a", "b", "c", "d"]]
    assert shared(Counter({"a": 1}), 2) == [["a"]]
