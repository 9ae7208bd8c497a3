"""sbr: a pod's interface answers by itself: packets from its addresses leave by it, whatever the other routes say."""
