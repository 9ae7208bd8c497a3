"""Container runtimes as CNI plugins meet them: one of our own that does what libcni does, and a private containerd.

`runtime.Runtime` runs chains by itself; `containerd.Containerd` starts Debian's. `nodeplug cni`, the demo and the
tests stand on both.
"""
