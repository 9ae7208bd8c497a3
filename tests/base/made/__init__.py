"""Modules for a run of their own (test_shards.py): named so that pytest collects none of them by itself."""
