"""Routing netlink: links, bridges, addresses, routes, and waiting for them. See rtnetlink(7).

One rule for all modules here: a function that takes a `Netlink` first does the thing; one that does not returns a
`Message`, so that a caller can put many into one `request`. Addresses are packed bytes, as the kernel has them.

    links      any link: add, set, delete, find, dump      addresses  of links
    veths      pairs, the far end in another namespace     routes     in any table, with several next hops
    rules      which table is asked                        watch      wait for a state by events
    bridges    bridges and their ports                     qdiscs     shaping and redirecting
    vlans      VLANs of bridge ports                       deletes    of several links in one go
    vrfs       and their tables                        uppers     macvlan, ipvlan, vlan: links on another one

A further kind of link is a module that calls `links.add(kind=..., data=...)` and reads `Link.data`.
"""
