"""`logwriter.py PATH reopens|keeps LINES RATE`: writes numbered lines of 100 bytes, RATE a second, or at once (0).

One that reopens does so when its file was renamed, as loggers do that watch it. Refused for lack of room, it tries
again until what it has begun is written. At the end it prints {"refused": how often}.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time

BATCH = 40
FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND
PATIENCE = 30.0


def main(path: str, how: str, count: int, rate: int) -> None:
    fd = os.open(path, FLAGS, 0o644)
    begun = time.monotonic()
    refused = 0
    for number in range(count):
        if number % BATCH == 0:
            if how == "reopens" and not _is_open_on(fd, path):
                os.close(fd)
                fd = os.open(path, FLAGS, 0o644)
            if rate:
                time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        line = f"{number:012d} ".encode() + b"." * 86 + b"\n"
        deadline = time.monotonic() + PATIENCE
        while line:
            try:
                line = line[os.write(fd, line) :]
            except OSError as error:
                if error.errno != errno.ENOSPC or time.monotonic() > deadline:
                    raise
                refused += 1
                time.sleep(0.005)
    print(json.dumps({"refused": refused}), flush=True)


def _is_open_on(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
