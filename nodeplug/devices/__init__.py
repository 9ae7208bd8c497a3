"""What devices a node has, which of them are well, and when that changes.

Rules become sources (`rules`, `sources/`), one thread asks them (`discovery`), and each pool's devices are an immutable
snapshot with a version (`snapshot`). Doors subscribe: this room knows neither gRPC nor the kubelet.
Plain modern Python; imports kernel and core only.
"""
