"""`nodeplug demo`: pods whose network is nodeplug's, shown from their first address to the proof that nothing is left.

scenario   what is shown, in order            remains   what pods leave on a node, by name
pods       what it asks of a runtime           show      how it looks on a terminal
containerd, ours   the two runtimes            who       a server that says who it is and whom it sees
"""
