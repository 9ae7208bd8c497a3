"""The `nodeplug` command, and what crosses contracts: installing, the demo, the version of everything.

Each door's own commands are in its `cli.py`, loaded when they are used.
"""
