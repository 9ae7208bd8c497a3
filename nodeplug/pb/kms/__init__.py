"""Messages of the kms contract, one module a version."""
