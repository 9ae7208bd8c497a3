"""The kubelet's side of FlexVolume, for drivers in any language: `answer` reads what a driver printed, `call` runs it,
`plugin` mounts and unmounts with it, `prober` finds it, `check` tries it out and says what is wrong.

Written from the kubelet's own code (pkg/volume/flexvolume), whose oddities are kept: a driver that is content here is
content there.
"""
