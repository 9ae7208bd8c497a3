"""bridge: a pod joins a bridge of the host by a veth.

`plugin` is what is called, in small steps; `config` its keys; `device` the bridge and its gateway addresses. Loaded
only where they are needed: `vlans`, `verify` (CHECK and STATUS). Nothing is imported here.
"""
