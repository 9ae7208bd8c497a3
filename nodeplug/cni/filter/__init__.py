"""Masquerade and host ports: one nft table for all of nodeplug's attachments, and what is needed to restore it.

    with filtering(warn=request.warn) as table:
        table.add(Owner(...), plan.masquerade(network, addresses))
        ...
        table.remove(attachment, plan.MASQUERADE)

`plan` turns values into a `Share` (elements of the table, claims on host ports); `layout` is the table itself; `index`
and `claims` are on disk; `table` brings them together. Used by the plugins bridge, ptp and portmap. No CNI JSON here.
"""
