"""nf_tables over nfnetlink, without an `nft` child: what is written here reads back through `nft list ruleset`.

`messages` has tables, chains, rules, sets and the transaction; `elements` what sets hold; `expressions` what rules do.
Nothing is imported here. See the kernel's uapi/linux/netfilter/nf_tables.h and nftables' own user data layout.
"""
