"""deploy/k8s as Kustomize renders it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.composed import ROOT

from openmanager import suite

Document = dict[str, Any]
Labels = Mapping[str, str]

FOLDER = ROOT / "deploy/k8s"
OVERLAYS = ("dev", "production", "victoriametrics-cluster", "edge", "shards")
# Where pods have what is mounted into them, and where they tell their health.
TOP, HEALTH = "/etc/openmanager", 50058
NAME = "app.kubernetes.io/name"
# Which of a StatefulSet's pods one is; its controller gives it.
INDEX = "apps.kubernetes.io/pod-index"
ORDINAL = {"fieldRef": {"fieldPath": f"metadata.labels['{INDEX}']"}}
WORKLOADS = ("Deployment", "StatefulSet", "CronJob", "Job")
# Which Secrets there have to be, with which keys (docs/kubernetes.md).
TLS = {"tls.crt", "tls.key", "ca.crt"}
SECRETS: dict[str, set[str]] = {
    "mesh-key": {"mesh_key"},
    "metadata": {"database_url", "identity_key", "audit_key"},
    "cache": {"redis_url"},
    "influxdb": {"influxdb_password", "influxdb_token"},
    "postgres": {"postgres_password"},
    "redis": {"redis_password"},
    "backup": {"backup_password", "s3_access_key", "s3_secret_key"},
    **{f"{name}-tls": TLS for name in suite.CERTIFIED},
}


def kubectl() -> str:
    """Return the kubectl of this environment, or the one on the PATH; skip when there is none."""
    found = shutil.which("kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip("kubectl is not installed")
    return found


@cache
def render(folder: Path) -> list[Document]:
    """Return the objects of a folder; whoever changes one makes a copy first."""
    kustomize = os.environ.get("TEST_KUSTOMIZE")
    command = [kustomize, "build"] if kustomize else [kubectl(), "kustomize"]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # where it says what is deprecated
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def overlay(name: str) -> list[Document]:
    """Return the objects of an overlay."""
    return render(FOLDER / "overlays" / name)


def named(documents: list[Document], kind: str, name: str) -> Document:
    """Return one object."""
    (found,) = [each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


@dataclass(frozen=True)
class Pod:
    """A template of pods, and the object that it is of."""

    owner: Document
    template: Document

    @property
    def name(self) -> str:
        return str(self.owner["metadata"]["name"])

    @property
    def labels(self) -> Labels:
        return dict(self.template["metadata"]["labels"])

    @property
    def spec(self) -> Document:
        return dict(self.template["spec"])

    @property
    def container(self) -> Document:
        (found,) = self.spec["containers"]
        return dict(found)

    @property
    def program(self) -> str:
        """The service that it runs, the command that it is, or nothing where it is not ours."""
        arguments: list[str] = self.container.get("args", [])
        if self.container["name"] != "program":
            return ""
        return arguments[1] if arguments[0] == "serve" else arguments[0]

    @property
    def ports(self) -> dict[str, int]:
        return {each["name"]: each["containerPort"] for each in self.container.get("ports", [])}

    def in_volume(self, path: str) -> tuple[str, str]:
        """Return the volume that has a path of the container, and where in it that is."""
        inside = [each for each in self.container["volumeMounts"] if Path(path).is_relative_to(each["mountPath"])]
        mount = max(inside, key=lambda each: len(each["mountPath"]))
        return mount["name"], str(Path(mount.get("subPath", "."), Path(path).relative_to(mount["mountPath"])))

    def claims(self) -> list[Document]:
        return list(self.owner["spec"].get("volumeClaimTemplates", []))

    def mounts(self) -> list[Document]:
        """Return what the container mounts, and what those that run before it do."""
        containers = [self.container, *self.spec.get("initContainers", [])]
        return [mount for each in containers for mount in each.get("volumeMounts", [])]

    def secrets(self) -> dict[str, tuple[str, str]]:
        """Return the Secret and key of every file of a Secret, by its path."""
        found = {}
        volumes = {each["name"]: each for each in self.spec.get("volumes", [])}
        for mount in self.mounts():
            volume = volumes.get(mount["name"], {})
            sources = volume.get("projected", {}).get("sources", [])
            if "secret" in volume:
                sources = [{"secret": {"name": volume["secret"]["secretName"], **volume["secret"]}}]
            for source in (each["secret"] for each in sources):
                whole = [{"key": key, "path": key} for key in sorted(SECRETS.get(source["name"], ()))]
                for item in source.get("items", whole):
                    found[f"{mount['mountPath']}/{item['path']}"] = (source["name"], item["key"])
        return found


def pods(documents: list[Document]) -> list[Pod]:
    """Return the pods that there will be."""
    found = []
    for each in documents:
        if each["kind"] in WORKLOADS:
            spec = each["spec"]["jobTemplate"]["spec"] if each["kind"] == "CronJob" else each["spec"]
            found.append(Pod(each, spec["template"]))
    return found


def pod(documents: list[Document], name: str) -> Pod:
    """Return the pod of one workload."""
    (found,) = [each for each in pods(documents) if each.name == name]
    return found


def environment(documents: list[Document], pod: Pod, ordinal: int = 0) -> dict[str, str]:
    """Return the variables of a pod's container, of a StatefulSet the pod of an ordinal; none comes from a Secret."""
    found: dict[str, str] = {}
    for source in pod.container.get("envFrom", []):
        if "configMapRef" in source:
            found |= named(documents, "ConfigMap", source["configMapRef"]["name"])["data"]
    for each in pod.container.get("env", []):
        if each.get("valueFrom") == ORDINAL:
            found[each["name"]] = str(ordinal)
        elif "value" in each:
            found[each["name"]] = each["value"]
    return found


def selects(selector: Document, labels: Labels) -> bool:
    """Say whether a label selector is for something with these labels."""
    equal = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    within = all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))
    assert {each["operator"] for each in selector.get("matchExpressions", [])} <= {"In"}
    return equal and within
