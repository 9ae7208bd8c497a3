"""Volumes of a node and what stands behind them. Doors (FlexVolume) open on this room; it knows none of them."""
