"""What starts a cluster's workers: lines for ssh, or a Kubernetes Indexed Job, to be looked at before they are run.

The Job's fields are those of batch/v1 and v1 of Kubernetes 1.33 (https://kubernetes.io/docs/concepts/workloads/
controllers/job/), the resource's name that of Ascend's device plugin.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Any, Sequence

from deberta.core.errors import ConfigError

RESOURCE = "huawei.com/Ascend310P"
FAILURES = 3  # of a device's pod, before it is given up
USER = 1000  # who runs in the pod; no root
_BY_DIGEST = re.compile(r"\S+@sha256:[0-9a-f]{64}")
CODE = "/opt/deberta-ascend"  # where the CI image has our code
SETTINGS = "/etc/deberta-ascend/settings"
FOLDER = "/var/lib/deberta-ascend"  # of a pod's own: its worker's files
PLACE, OWN = "/etc/deberta-ascend/cluster", f"{FOLDER}/certificates"  # where a pod finds its certificates, and has them


def ssh_lines(cluster: str, hosts: Sequence[str], project: str, devices: str) -> list[str]:
    """A line for each host, whose workers go on when the connection ends, and start again after an error."""
    lines = []
    for host in hosts:
        if not re.fullmatch(r"[A-Za-z0-9_.@:-]{1,253}", host) or host.startswith("-"):
            raise ConfigError(f"{host!r} is no name of a host. Give names with commas between: --host npu1,npu2")
        worker = f"cd {shlex.quote(project)} && exec ./inv cluster worker --cluster {cluster} --device {devices}"
        run = ["systemd-run", "--user", f"--unit=deberta-{cluster}", "--collect", "-p", "Restart=on-failure"]
        line = shlex.join([*run, "-p", "RestartSec=10", "/bin/sh", "-c", worker])
        lines.append(f"ssh {host} {shlex.quote(line)}")
    return lines


def kubernetes(cluster: str, scheduler: str, image: str, devices: int, volcano: bool = False) -> str:
    """An Indexed Job, a device for each index, as JSON, which is YAML too. Raises ConfigError for an image by a tag.

    The certificates of its pods are in the secret deberta-CLUSTER-certificates: ca.pem, cert.pem, key.pem.
    """
    if not _BY_DIGEST.fullmatch(image):
        raise ConfigError(
            f"--image {image!r} names no image by its digest. Give NAME@sha256:DIGEST, so that all are one"
        )
    name = f"deberta-{cluster}"
    settings = {"clusters": {cluster: {"scheduler": scheduler, "certificates": OWN, "folder": FOLDER}}}
    container: dict[str, Any] = {
        "name": "worker",
        "image": image,
        # The device plugin gives a pod one chip, which is device 0 in it.
        # A secret's files get the group's permissions with fsGroup, and a key that others can read is refused.
        "command": [
            "/bin/sh", "-c",
            f"install -d -m 700 {OWN} && install -m 600 {PLACE}/*.pem {OWN}/ && "
            f"exec {CODE}/inv -f {SETTINGS}/invoke.yaml cluster worker --cluster {cluster} --device 0 --executor local",
        ],
        "resources": {"limits": {RESOURCE: 1}, "requests": {RESOURCE: 1}},
        "securityContext": {
            "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "certificates", "mountPath": PLACE, "readOnly": True},
            {"name": "settings", "mountPath": SETTINGS, "readOnly": True},
            {"name": "work", "mountPath": FOLDER},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }  # fmt: skip
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        **({"schedulerName": "volcano"} if volcano else {}),
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER},
        "containers": [container],
        "volumes": [
            {"name": "certificates", "secret": {"secretName": f"{name}-certificates"}},
            {"name": "settings", "configMap": {"name": f"{name}-settings"}},
            {"name": "work", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completionMode": "Indexed",
            "completions": devices,
            "parallelism": devices,
            "backoffLimitPerIndex": FAILURES,
            "maxFailedIndexes": devices,
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
        },
    }
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-settings"},
        "data": {"invoke.yaml": json.dumps(settings)},
    }
    listed = {"apiVersion": "v1", "kind": "List", "items": [config, job]}
    return json.dumps(listed, indent=2)
