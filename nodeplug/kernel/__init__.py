"""The Linux kernel's interfaces, thin and honest: each function is named after the call it makes.

Failures are `OSError` that name the call and its object; callers translate them into `nodeplug.core.errors`.
Imports `nodeplug.core` and the standard library only.
"""
