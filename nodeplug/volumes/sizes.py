"""Sizes in words, for messages that compare what was asked with what there is."""

from __future__ import annotations

_UNITS = ("Ki", "Mi", "Gi", "Ti", "Pi")


def shown(size: int) -> str:
    """As an operator writes it: "64Mi" where it is that exactly, else "1.5Gi" rounded to what can be read."""
    unit = ""
    scaled = float(size)
    for larger in _UNITS:
        if abs(scaled) < 1024:
            break
        scaled, unit = scaled / 1024, larger
    digits = f"{scaled:.2f}".rstrip("0").rstrip(".")
    return f"{digits}{unit}" if unit else f"{size} bytes"


def exact(size: int) -> str:
    """As a settings file may have it: '"64Mi"', or the number of bytes."""
    units = [n for n in range(4) if size and size % (1 << 10 * (n + 1)) == 0]
    return f'"{size >> 10 * (units[-1] + 1)}{_UNITS[units[-1]]}"' if units else str(size)
