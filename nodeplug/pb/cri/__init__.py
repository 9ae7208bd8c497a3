"""Messages of the cri contract, one module a version."""
