"""An API server's side of the KMS contract: it calls a plugin as one does, holds every reply to the rules, and stores.

`client` (the calls), `rules` (what a reply has to be, as a table), `server` and `server_v1` (probe loop, seeds, cache),
`stored` (what ends up in etcd), `etcd` (a store that can be dumped), `clock` (hours in seconds).
"""
