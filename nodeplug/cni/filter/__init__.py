"""Masquerade, host ports and forwarding: one nft table for all attachments, and what is needed to restore it.

    with filtering(warn=request.warn) as table:
        table.add(Owner(...), plan.masquerade(network, addresses))
        ...
        table.remove(attachment, plan.MASQUERADE)

`plan` turns values into a `Share` (elements of the table, claims on host ports); `layout` is the table itself, and
`passage` the part of it for pods whose traffic is to pass wherever the host forwards; `gates` finds what other tables
drop of that, `opening` opens it. `index` and `claims` are on disk; `table` brings them together. Used by the plugins
bridge, ptp, portmap and firewall. No CNI JSON here.
"""
