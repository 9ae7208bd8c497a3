"""What the reference plugins leave on a node: found by the names they derive, and removed when its pod goes.

A node that changes to nodeplug's plugins has pods of the reference's for a while. Plugins ask this room on DEL when an
attachment has nothing of their own, and on GC; the door asks it when an address is given, so that nothing of a pod
before leads to a new one that has it. Nothing of it runs on a node where `census` has found nothing.

    names       how the reference calls its chains, tables and comments
    rules       a rule as far as it matters here, read from nf_tables
    legacy      the same from iptables-legacy, by its own programs
    tables      one plan carried out in iptables' tables of each kind and family
    masquerade, hostports, firewall, spoofing    what each plugin made
    census      whether there is anything at all, as the last `look` has found
    known       which containers runtimes still know of
    sweep       an address that is given again
"""
