"""Volumes: what a pod may have mounted, behind whichever door asks for it.

`contract` has the nouns and the base class of a back-end, `service` is what doors and `nodeplug volume` call. Nothing
here knows FlexVolume or CSI. Must not import a door, the worker or the command line.
"""
