"""Which memory node (NUMA) a device hangs on. -1 in sysfs means none, and none is what is passed on.

Used by the sources. A node with one memory node has nothing to align, so nothing is looked up there.
"""

import os

from nodeplug.devices.host import Host, number_list


class Topology:
    """Answers for one scan and remembers by directory. `forget` before a full rescan."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._known: dict[str, tuple[int, ...]] = {}
        self._online = frozenset[int]()
        self.forget()

    def forget(self) -> None:
        """Look at everything again from here on."""
        self._known.clear()
        self._online = frozenset(number_list(self._host.attribute(f"{self._host.sys}/devices/system/node/online")))

    @property
    def matters(self) -> bool:
        """Whether the machine has more than one memory node."""
        return len(self._online) > 1

    def of_directory(self, directory: str) -> tuple[int, ...]:
        """The memory node of the device at `directory` (without links), or of the nearest parent that names one."""
        if not self.matters or not directory:
            return ()
        known = self._known.get(directory)
        if known is not None:
            return known
        parent = os.path.dirname(directory)
        text = self._host.attribute(f"{directory}/numa_node")
        if text:
            number = int(text) if text.isascii() and text.isdigit() else -1
            # A bridge may say -1 where its parent knows better; a parent never knows less.
            found = (number,) if number in self._online else self._above(parent)
        else:
            found = self._above(parent)
        self._known[directory] = found
        return found

    def _above(self, parent: str) -> tuple[int, ...]:
        if not parent.startswith(self._host.real(self._host.sys) + "/devices/"):
            return ()
        return self.of_directory(parent)

    def of_number(self, number: tuple[str, int, int] | None) -> tuple[int, ...]:
        """The memory node of a device by its number."""
        if not self.matters or number is None:
            return ()
        return self.of_directory(self._host.node_directory(number))
