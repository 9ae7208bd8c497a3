"""A plugin's executable that meets a fault at a chosen step: killed there, or its system call fails.

Run as a program, `faults.py STEP FAULT NAME`, it is the plugin NAME of this checkout. Python reports what it is about
to do to audit hooks; what goes to the kernel or to files are the steps, from 0. FAULT is `kill`, which counts only
steps that change something, an errno, or `count`, which writes the steps to stderr. No code of ours is replaced.
"""

from __future__ import annotations

import os
import signal
import sys

STEPS = {"socket.sendto", "open", "os.link", "os.remove", "os.rename", "os.mkdir", "os.listdir", "subprocess.Popen"}
STEPS |= {"os.symlink", "os.truncate", "os.utime", "os.rmdir", "fcntl.ioctl"}
_CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_TUN = ord("T")  # the type of ioctls that make taps; others only look
CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_QUIET = ("/usr", "/proc/self", "/proc/thread-self", "/var/log", "/etc", CHECKOUT)


def program(step: int, fault: str | int, name: str) -> list[str]:
    """The command that runs the plugin with that fault."""
    return ["/usr/bin/python3", "-IS", os.path.abspath(__file__), str(step), str(fault), name]


def _main(step: int, fault: str, name: str) -> None:
    sys.path.insert(0, CHECKOUT)
    from nodeplug.cni.main import main

    number = -1

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal number
        if not is_step(event, arguments) or (fault == "kill" and not changes(event, arguments)):
            return
        number += 1
        if fault == "count":
            subject = arguments[0]
            os.write(2, f"step {number} {event} {subject if isinstance(subject, str) else ''}\n".encode())
        elif number == step and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif number == step:
            raise OSError(int(fault), os.strerror(int(fault)), "injected")

    sys.addaudithook(hook)
    main([name])


def is_step(event: str, arguments: tuple[object, ...]) -> bool:
    """Whether what Python is about to do goes to the kernel or to files that a plugin works on."""
    if event not in STEPS or (event == "fcntl.ioctl" and int(str(arguments[1])) >> 8 & 0xFF != _TUN):
        return False
    subject = arguments[0]
    return not (isinstance(subject, str) and subject.startswith(_QUIET))


def changes(event: str, arguments: tuple[object, ...]) -> bool:
    """Whether that step may change something."""
    if event == "os.listdir":
        return False
    if event != "open":
        return True
    path, _mode, flags = arguments
    return isinstance(flags, int) and bool(flags & _CHANGING) and not str(path).startswith("/proc/sys")


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
