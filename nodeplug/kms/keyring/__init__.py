"""The key ring of the local provider: one file of sealed keys, the rules of their rotation, and its commands' work.

`ring` (values and rules), `cipher` (all cryptography), `seals` (what keeps the ring's own key), `store` (the file),
`usage` (when a key was used last), `transfer` (export, import), `evidence` (which keys etcd still needs).
"""
