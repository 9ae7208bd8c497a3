"""tap under SELinux, with a policy of our own that lets everything pass and reports who attaches to which label."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.child import run
from tests.cni.pods import Network
from tests.cni.test_tap import attached
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space

pytestmark = needs("selinux", "sandbox", "program:secilc")
CONTEXT = "u:r:tap_t:s0"
# In CIL. Classes it does not name are allowed, and nothing is enforced: a refusal is a line in the kernel's log.
POLICY = """
(handleunknown allow)
(mls true)
(class process (fork transition sigchld sigkill sigstop signull signal ptrace getsched setsched getsession getpgid
    setpgid getcap setcap share getattr setexec setfscreate noatsecure siginh setrlimit rlimitinh dyntransition
    setcurrent execmem execstack execheap setkeycreate setsockcreate getrlimit))
(class tun_socket (ioctl read write create getattr setattr lock relabelfrom relabelto append map bind connect listen
    accept getopt setopt shutdown recvfrom sendto name_bind attach_queue))
(classorder (process tun_socket))
(sid kernel) (sid security) (sid unlabeled)
(sidorder (kernel security unlabeled))
(sensitivity s0)
(sensitivityorder (s0))
(user u)
(role r)
(type kernel_t)
(type tap_t)
(typeattribute all_t)
(typeattributeset all_t (all))
(userrole u r)
(roletype r all_t)
(userlevel u (s0))
(userrange u ((s0) (s0)))
(sidcontext kernel (u r kernel_t ((s0) (s0))))
(sidcontext security (u r kernel_t ((s0) (s0))))
(sidcontext unlabeled (u r kernel_t ((s0) (s0))))
(allow all_t all_t (process (all)))
(allow all_t all_t (tun_socket (create)))
"""


@pytest.fixture
def _policy(ledger: Ledger) -> None:
    directory = ledger.directory()
    source, compiled, mounted = (directory / name for name in ("policy.cil", "policy", "selinux"))
    source.write_text(POLICY)
    run(["secilc", "-o", compiled, "-f", "/dev/null", source]).ok()
    mounted.mkdir()
    run(["mount", "-t", "selinuxfs", "selinuxfs", mounted]).ok()
    (mounted / "load").write_bytes(compiled.read_bytes())
    run(["/sbin/modprobe", "tun"]).ok()


@pytest.mark.usefixtures("_policy")
def test_tap_has_the_context_of_selinux_that_was_asked_for(ledger: Ledger, netns: Space) -> None:
    network = Network(ledger, type="tap", selinuxContext=CONTEXT, owner=1000)
    assert network.ask("STATUS") == (0, None)
    result = network.add(netns)
    network.check(netns, result)
    assert Path("/proc/thread-self/attr/current").read_text().startswith("u:r:kernel_t:s0"), "nobody else's changed"
    os.close(attached(netns))
    told = [line for line in run(["dmesg"]).ok().text.splitlines() if "relabelfrom" in line]
    assert "scontext=u:r:kernel_t:s0 tcontext=u:r:tap_t:s0 tclass=tun_socket" in told[-1]
    network.delete(netns)
    assert netns.links() == {"lo"}


@pytest.mark.usefixtures("_policy")
def test_tap_context_that_the_policy_does_not_know_is_refused(ledger: Ledger, netns: Space) -> None:
    network = Network(ledger, type="tap", selinuxContext="u:r:nonsense_t:s0")
    error = network.refused("ADD", netns)
    assert (error["code"], "'u:r:nonsense_t:s0': the context: Invalid argument" in error["msg"]) == (100, True)
    assert netns.links() == {"lo"}
