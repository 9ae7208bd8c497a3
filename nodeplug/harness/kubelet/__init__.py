"""The kubelet's side of the node contracts, to run any plugin against, ours and others'.

Written from the contracts and from what kubelets were seen to do; knows plugins as executables and sockets only.
"""
