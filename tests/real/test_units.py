"""The units as they are shipped, run by a real systemd: credentials, sockets, notifications, sandboxing, restarts."""

from __future__ import annotations

from pathlib import Path

from tests.needs import needs
from tests.systemd import boot

pytestmark = needs("sandbox", "file:/lib/systemd/systemd", "program:systemd-creds")

KMS = r"""
mkdir -p /etc/nodeplug
cp /opt/nodeplug/systemd/nodeplug-kms.service /opt/nodeplug/systemd/nodeplug-kms.socket /etc/systemd/system/
cat > /etc/nodeplug/kms.toml <<'END'
[kms.provider]
type = "local"
END
nodeplug kms init
nodeplug-kms --check
systemctl daemon-reload
systemctl start nodeplug-kms.socket nodeplug-kms.service
pid=$(systemctl show -p MainPID --value nodeplug-kms.service)
grep -E '^(NoNewPrivs|Seccomp|CapEff):' "/proc/$pid/status" | tr -s '\t' ' '
cat > /tmp/client.py <<'END'
import subprocess, sys, threading, time
sys.path.insert(0, "/opt/nodeplug")
from nodeplug.harness.apiserver.client import V2, CallFailed

path = "/run/nodeplug/kms.sock"
first = V2(path)
print("first status:", first.status().healthz)
good = first.encrypt("u", bytes(32))
answered, failures, over = 0, [], False


def call():
    global answered
    while not over:
        one = V2(path, timeout=10)
        try:
            one.decrypt("u", good)
            answered += 1
        except CallFailed as error:
            failures.append(str(error))
        finally:
            one.close()


thread = threading.Thread(target=call)
thread.start()
for verb in ("restart", "reload", "restart"):
    before = answered
    subprocess.run(["systemctl", verb, "nodeplug-kms.service"], check=True)
    end = time.monotonic() + 20
    while answered < before + 5 and not failures and time.monotonic() < end:
        time.sleep(0.01)
over = True
thread.join()
print("failures:", failures)
END
/opt/nodeplug/.venv/bin/python /tmp/client.py
systemctl kill -s KILL nodeplug-kms.service
/opt/nodeplug/.venv/bin/python -c '
import sys; sys.path.insert(0, "/opt/nodeplug")
from nodeplug.harness.apiserver.client import V2
print("after a kill:", V2("/run/nodeplug/kms.sock", timeout=20).status().healthz)'
systemctl show -p NRestarts nodeplug-kms.service
echo 'typo = 1' >> /etc/nodeplug/kms.toml
systemctl restart nodeplug-kms.service 2>/dev/null || true
sleep 2
systemctl show -p ActiveState,ExecMainStatus nodeplug-kms.service
"""

DEVICES = r"""
mkdir -p /etc/nodeplug /var/lib/kubelet
cp /opt/nodeplug/systemd/nodeplug-deviceplugin.service /etc/systemd/system/
cat > /etc/nodeplug/deviceplugin.toml <<'END'
[[deviceplugin.resource]]
name = "nodeplug.dev/null"
match = [ { path = "/dev/null" } ]
END
systemctl daemon-reload
cat > /tmp/kubelet.py <<'END'
import pathlib, subprocess, sys
sys.path.insert(0, "/opt/nodeplug")
from nodeplug.harness.kubelet.devicemanager import DeviceManager

NAME, UNIT = "nodeplug.dev/null", "nodeplug-deviceplugin.service"
with DeviceManager(pathlib.Path("/var/lib/kubelet")) as kubelet:
    for verb in (["start"], ["reload"], ["restart"], ["kill", "-s", "KILL"]):
        subprocess.run(["systemctl", *verb, UNIT], check=True)
        kubelet.wait(NAME, capacity=1, allocatable=1, timeout=30)
    kubelet.restart()
    kubelet.wait(NAME, capacity=1, allocatable=1, timeout=30)
    print("given:", kubelet.admit("default/pod", "app", {NAME: 1})[NAME].devices[0].host_path)
    subprocess.run(["systemctl", "stop", UNIT], check=True)
END
/opt/nodeplug/.venv/bin/python /tmp/kubelet.py 2>/dev/null
systemctl show -p Result,ExecMainStatus nodeplug-deviceplugin.service
"""


def test_the_kms_unit_serves_from_a_credential_and_behind_its_socket_loses_no_call(directory: Path) -> None:
    said = boot(directory, KMS)
    for line in (
        "sealed by systemd-credential",
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "CapEff: 0000000000004001",  # CAP_CHOWN and CAP_IPC_LOCK
        "first status: ok",
        "failures: []",
        "after a kill: ok",
        "NRestarts=1",
        "ActiveState=failed",
        "ExecMainStatus=78",
    ):
        assert line in said, said


def test_the_device_plugin_s_unit_registers_and_ends_in_order(directory: Path) -> None:
    said = boot(directory, DEVICES)
    for line in ("given: /dev/null", "Result=success", "ExecMainStatus=0"):
        assert line in said, said
