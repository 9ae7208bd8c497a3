"""Pod manifests of the pages, read as a kubelet would know them: a pod, its flexVolumes, the secrets they name."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import yaml

from nodeplug.core import paths
from nodeplug.harness.kubelet.flexvolume.plugin import Pod, Volume
from nodeplug.volumes.log import records


def read(text: str) -> list[tuple[Pod, list[Volume]]]:
    """The pods in YAML documents, each with its flexVolumes. Secrets are the documents of that kind beside them.

    Raises AssertionError for what an API server or a kubelet would not take.
    """
    documents = [document for document in yaml.safe_load_all(text) if document]
    secrets = {
        (document["metadata"].get("namespace", "default"), document["metadata"]["name"]): document
        for document in documents
        if document["kind"] == "Secret"
    }
    return [_pod(document, secrets) for document in documents if document["kind"] == "Pod"]


def forget() -> None:
    """Take away what pages leave by design: an authority that an operator made, logs that stay for their collectors."""
    for id in records.ids():
        known = records.read(id)
        if known is not None:
            records.remove(known, lambda _: None)
    shutil.rmtree(Path(paths.VAR, "ca"), ignore_errors=True)


def _pod(document: dict[str, Any], secrets: dict[tuple[str, str], dict[str, Any]]) -> tuple[Pod, list[Volume]]:
    metadata, spec = document["metadata"], document["spec"]
    namespace = metadata.get("namespace", "default")
    pod = Pod(
        metadata["name"],
        namespace=namespace,
        uid=f"{metadata['name']}-uid",
        service_account=spec.get("serviceAccountName", "default"),
        fs_group=spec.get("securityContext", {}).get("fsGroup"),
    )
    volumes = []
    for each in spec["volumes"]:
        source = each.get("flexVolume")
        if source is None:
            continue
        options = source.get("options", {})
        assert all(isinstance(value, str) for value in options.values()), f"options are strings: {options}"
        named = source.get("secretRef", {}).get("name")
        volumes.append(
            Volume(
                each["name"],
                source["driver"],
                options,
                fs_type=source.get("fsType", ""),
                read_only=source.get("readOnly", False),
                secrets=_content(secrets[(namespace, named)], source["driver"]) if named else {},
            )
        )
    mounted = {each["name"] for container in spec["containers"] for each in container.get("volumeMounts", ())}
    assert {each["name"] for each in spec["volumes"]} == mounted, "each volume is mounted, and nothing else"
    return pod, volumes


def _content(secret: dict[str, Any], driver: str) -> dict[str, bytes]:
    assert secret.get("type") == driver, f"the kubelet hands over secrets of type {driver} only"
    content = {name: base64.b64decode(value, validate=True) for name, value in secret.get("data", {}).items()}
    return content | {name: value.encode() for name, value in secret.get("stringData", {}).items()}
