"""ptp: a pod has a veth to the host, which routes between its pods: each is a network of its own.

`plugin` is what is called; `plan` what becomes of an address manager's answer, pure. Loaded only where it is needed:
`verify` (CHECK and STATUS). Nothing is imported here.
"""
