"""What may be wrong with the objects of deploy/k8s; a fault is a sentence that names the object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
from deploy.manifests import INDEX, ORDINAL, SECRETS, Document, Pod, environment, pods, selects
from referencing import Registry, Resource

from openmanager import config, suite

# The minors that Kubernetes itself supports, and what the schemas know.
VERSIONS = ("1.35", "1.36", "1.37")
# cert-manager's, which Kubernetes' schemas do not know.
CUSTOM = {"Certificate", "Issuer"}
KNOWN = {key.variable for key in config.keys(suite.sections())} | config.RESERVED_VARIABLES


def _schemas(version: str) -> Path:
    return Path(str(files("kubernetes_validate"))) / f"kubernetes-json-schema/v{version}.0-local-strict"


@cache
def _shared(version: str) -> Registry[Any]:
    return Resource.from_contents(json.loads((_schemas(version) / "_definitions.json").read_text())) @ Registry()


@cache
def _validator(version: str, api: str, kind: str) -> jsonschema.Draft202012Validator | None:
    """Return what validates objects of a kind; None where the version does not have it."""
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
    file = _schemas(version) / f"{kind.lower()}-{group}.json"
    if not file.exists():
        return None
    return jsonschema.Draft202012Validator(json.loads(file.read_text()), registry=_shared(version))


def schema_faults(documents: list[Document], version: str) -> Iterator[str]:
    """Yield what the schema of a version of Kubernetes' API does not allow, unknown fields too."""
    for each in documents:
        if each["kind"] in CUSTOM:
            continue
        validator = _validator(version, each["apiVersion"], each["kind"])
        if validator is None:
            yield f"{_title(each)}: {version} has no {each['apiVersion']}"
            continue
        for error in validator.iter_errors(each):
            yield f"{_title(each)}: {'.'.join(map(str, error.path))}: {error.message}"


SELECTORS = {
    "Service": lambda spec: {"matchLabels": spec["selector"]},
    "PodDisruptionBudget": lambda spec: spec["selector"],
    "NetworkPolicy": lambda spec: spec["podSelector"],
}


def selector_faults(documents: list[Document]) -> Iterator[str]:
    """Yield selectors of objects that choose nobody."""
    found = pods(documents)
    for each in documents:
        if each["kind"] not in SELECTORS:
            continue
        if not any(selects(SELECTORS[each["kind"]](each["spec"]), pod.labels) for pod in found):
            yield f"{_title(each)}: it selects nothing"
        for rule in each["spec"].get("ingress", []) + each["spec"].get("egress", []):
            for peer in rule.get("from", []) + rule.get("to", []):
                is_pod = "namespaceSelector" not in peer and "ipBlock" not in peer
                if is_pod and not any(selects(peer["podSelector"], pod.labels) for pod in found):
                    yield f"{_title(each)}: it lets nobody through"


def placement_faults(documents: list[Document]) -> Iterator[str]:
    """Yield workloads that look after other pods than their own."""
    found = pods(documents)
    for pod in found:
        own = pod.owner["spec"].get("selector")
        if own is not None and not selects(own, pod.labels):
            yield f"{_title(pod.owner)}: its selector is not for its own pods"
        for spread in pod.spec.get("topologySpreadConstraints", []):
            if not selects(spread["labelSelector"], pod.labels):
                yield f"{_title(pod.owner)}: it spreads other pods than its own"
        affinity = pod.spec.get("affinity", {}).get("podAffinity", {})
        for term in affinity.get("requiredDuringSchedulingIgnoredDuringExecution", []):
            wanted = dict(term["labelSelector"]["matchLabels"])
            index = int(wanted.pop(INDEX, 0))
            beside = [each for each in found if selects({"matchLabels": wanted}, each.labels)]
            if not any(index < each.owner["spec"].get("replicas", 1) for each in beside):
                yield f"{_title(pod.owner)}: it wants to be beside nobody"


def source_faults(documents: list[Document]) -> Iterator[str]:
    """Yield variables that come from where there is nothing, or from a Secret: that is for files alone."""
    for pod in pods(documents):
        yield from (f"{_title(pod.owner)}: there is no ConfigMap {name}" for name in _missing_maps(documents, pod))
        if any("secretRef" in each for each in pod.container.get("envFrom", [])):
            yield f"{_title(pod.owner)}: a Secret is in its environment"
        ordinal = [ORDINAL] if pod.owner["kind"] == "StatefulSet" else []
        if any(each["valueFrom"] not in ordinal for each in pod.container.get("env", []) if "valueFrom" in each):
            yield f"{_title(pod.owner)}: a variable has no plain value"


def secret_faults(documents: list[Document]) -> Iterator[str]:
    """Yield Secrets and keys of them that nobody was told to make."""
    for pod in pods(documents):
        for secret, key in pod.secrets().values():
            if key not in SECRETS.get(secret, ()):
                yield f"{_title(pod.owner)}: there is no {key} in a Secret {secret}"
        for volume in pod.spec.get("volumes", []):
            name = volume.get("secret", {}).get("secretName")
            if name is not None and name not in SECRETS:
                yield f"{_title(pod.owner)}: there is no Secret {name}"


def reference_faults(documents: list[Document]) -> Iterator[str]:
    """Yield names of objects that there are not."""
    there = {(each["kind"], each["metadata"]["name"]) for each in documents}
    wanted: list[tuple[Document, str, str]] = []
    for pod in pods(documents):
        there |= {
            ("PersistentVolumeClaim", f"{claim['metadata']['name']}-{pod.name}-{ordinal}")
            for claim in pod.claims()
            for ordinal in range(pod.owner["spec"]["replicas"])
        }
        claims = [each.get("persistentVolumeClaim") for each in pod.spec.get("volumes", [])]
        wanted += [(pod.owner, "PersistentVolumeClaim", each["claimName"]) for each in claims if each]
        maps = [each.get("configMap") for each in pod.spec.get("volumes", [])]
        wanted += [(pod.owner, "ConfigMap", each["name"]) for each in maps if each]
    for each in documents:
        match each["kind"]:
            case "StatefulSet":
                wanted.append((each, "Service", each["spec"]["serviceName"]))
            case "HorizontalPodAutoscaler":
                target = each["spec"]["scaleTargetRef"]
                wanted.append((each, target["kind"], target["name"]))
            case "Certificate":
                wanted.append((each, "Issuer", each["spec"]["issuerRef"]["name"]))
    yield from (f"{_title(of)}: there is no {kind} {name}" for of, kind, name in wanted if (kind, name) not in there)


def volume_faults(documents: list[Document]) -> Iterator[str]:
    """Yield volumes that nobody mounts, mounts of no volume, and files that no volume has."""
    for pod in pods(documents):
        title = _title(pod.owner)
        volumes = {each["name"] for each in pod.spec.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in pod.claims()}
        mounts = {each["name"]: each["mountPath"] for each in pod.mounts()}
        yield from (f"{title}: the volume {name} is not mounted" for name in sorted(volumes - set(mounts)))
        yield from (f"{title}: there is no volume {name}" for name in sorted(set(mounts) - volumes))
        told = environment(documents, pod) if not [*_missing_maps(documents, pod)] else {}
        for variable, value in told.items():
            of_secrets = any(value.startswith(f"{place}/") for place in ("/etc/openmanager", "/etc/store"))
            if of_secrets and value not in pod.secrets():
                yield f"{title}: {variable} names {value}, which is not mounted"
            if variable.endswith("_DATA_DIR") and not any(value.startswith(f"{each}/") for each in mounts.values()):
                yield f"{title}: {variable} is on no volume"


def port_faults(documents: list[Document]) -> Iterator[str]:
    """Yield ports that are asked for and that no container has."""
    for pod in pods(documents):
        known = {*pod.ports, *pod.ports.values()}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = pod.container.get(probe, {})
            for kind in ("grpc", "httpGet", "tcpSocket"):
                if kind in asked and asked[kind]["port"] not in known:
                    yield f"{_title(pod.owner)}: its {probe} asks at {asked[kind]['port']}, which is no port of it"
    for service in (each for each in documents if each["kind"] == "Service"):
        selected = [pod for pod in pods(documents) if selects({"matchLabels": service["spec"]["selector"]}, pod.labels)]
        for port in service["spec"]["ports"]:
            for pod in selected:
                target = pod.ports.get(port["targetPort"])
                if target is None:
                    yield f"{_title(service)}: {pod.name} has no port {port['targetPort']}"
                elif service["spec"].get("clusterIP") == "None" and target != port["port"]:
                    yield f"{_title(service)}: without an address of its own {port['port']} leads to {port['port']}"


def variable_faults(documents: list[Document]) -> Iterator[str]:
    """Yield variables that our configuration does not know."""
    for pod in pods(documents):
        if not pod.program or [*_missing_maps(documents, pod)]:
            continue
        for variable in environment(documents, pod):
            if not variable.startswith("OTEL_") and not {variable, variable.removesuffix("_FILE")} & KNOWN:
                yield f"{_title(pod.owner)}: nothing reads {variable}"


def hardening_faults(documents: list[Document]) -> Iterator[str]:
    """Yield what the profile `restricted` of Kubernetes does not allow, and what is ours beyond it."""
    for pod in pods(documents):
        title, spec, own = _title(pod.owner), pod.spec, pod.spec.get("securityContext", {})
        wanted = {
            "no privileges of the node": not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(spec),
            "a user that is not root": own.get("runAsNonRoot") is True and own.get("runAsUser", 0) > 0,
            "the system calls of the runtime": own.get("seccompProfile") == {"type": "RuntimeDefault"},
            "no token of Kubernetes": spec.get("automountServiceAccountToken") is False,
            "no variables of services": spec.get("enableServiceLinks") is False,
            "allowed kinds of volumes": all(
                set(each) - {"name"} <= {"emptyDir", "secret", "projected", "persistentVolumeClaim", "configMap"}
                for each in spec.get("volumes", [])
            ),
            "a bound on what is written aside": all(
                "sizeLimit" in each["emptyDir"] for each in spec.get("volumes", []) if "emptyDir" in each
            ),
            "secrets that others cannot read": all(
                each[kind].get("defaultMode", 0o644) & 0o7 == 0
                for each in spec.get("volumes", [])
                for kind in ("secret", "projected")
                if kind in each
            ),
        }
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            rights = container.get("securityContext", {})
            limits, requests = (container.get("resources", {}).get(kind, {}) for kind in ("limits", "requests"))
            wanted |= {
                "no new privileges": rights.get("allowPrivilegeEscalation") is False and "privileged" not in rights,
                "no capabilities": rights.get("capabilities") == {"drop": ["ALL"]},
                "nothing taken back": not {"runAsUser", "runAsNonRoot", "seccompProfile", "procMount"} & set(rights),
                "a root that cannot be written": rights.get("readOnlyRootFilesystem") is True,
                "requests and limits": set(limits) == set(requests) == {"cpu", "memory"},
                "a fixed image": re.fullmatch(r".+:(?!latest$)[^:/]+|.+@sha256:\w{64}", container["image"]) is not None,
                "no port of the node": all("hostPort" not in each for each in container.get("ports", [])),
            }
        yield from (f"{title}: it lacks {what}" for what, holds in wanted.items() if not holds)
    for namespace in (each for each in documents if each["kind"] == "Namespace"):
        if namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{_title(namespace)}: it takes any pod"


def duty_faults(documents: list[Document]) -> Iterator[str]:
    """Yield what keeps a pod from starting, being looked after, or ending as it should."""
    balanced = [
        {"matchLabels": each["spec"]["selector"]}
        for each in documents
        if each["kind"] == "Service" and not each["spec"].get("publishNotReadyAddresses")
    ]
    for pod in pods(documents):
        if pod.owner["kind"] in {"CronJob", "Job"}:
            continue
        probes = {"startupProbe", "readinessProbe"} | ({"livenessProbe"} if pod.program else set())
        yield from (f"{_title(pod.owner)}: it has no {each}" for each in sorted(probes - set(pod.container)))
        sleep = pod.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        is_balanced = any(selects(each, pod.labels) for each in balanced)
        if is_balanced and pod.program and not sleep:
            yield f"{_title(pod.owner)}: it ends while it is still sent to"
        # What a server of ours takes at most, and some room.
        if pod.spec.get("terminationGracePeriodSeconds", 30) < sleep + 12:
            yield f"{_title(pod.owner)}: it is killed before it has ended"


CHECKS = (
    selector_faults,
    placement_faults,
    source_faults,
    secret_faults,
    reference_faults,
    volume_faults,
    port_faults,
    variable_faults,
    hardening_faults,
    duty_faults,
)


def faults(documents: list[Document], only: Document | None = None) -> list[str]:
    """Return everything that is wrong with the objects of an overlay; of `only` one of them what the schemas say."""
    checked = documents if only is None else [only]
    return [
        *(fault for version in VERSIONS for fault in schema_faults(checked, version)),
        *(fault for check in CHECKS for fault in check(documents)),
    ]


def _title(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def _missing_maps(documents: list[Document], pod: Pod) -> Iterator[str]:
    there = {each["metadata"]["name"] for each in documents if each["kind"] == "ConfigMap"}
    for source in pod.container.get("envFrom", []):
        name = source.get("configMapRef", {}).get("name")
        if name is not None and name not in there:
            yield name
