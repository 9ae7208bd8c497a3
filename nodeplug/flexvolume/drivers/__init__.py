"""The drivers of this package, which stand on nodeplug's volumes."""
