"""The other side of each contract, to run and to test any plugin against: runtimes, kubelets, API servers.

Written from the contract pages alone: it imports no door of ours and knows plugins only as executables and sockets, so
that a misreading of a contract by our own plugins shows here.
"""
