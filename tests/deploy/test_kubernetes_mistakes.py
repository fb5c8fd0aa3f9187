"""Mistakes in deploy/k8s: each is made in what was rendered, and found by the checks that find nothing in it as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from deploy.manifest_faults import faults
from deploy.manifests import INDEX, NAME, Document, named, overlay


@dataclass(frozen=True)
class Mutation:
    """A mistake in an object, and what the fault that it makes says."""

    of: tuple[str, str]
    make: Callable[[Document], Any]
    said: str


def spec(document: Document) -> Any:
    return document["spec"]


def template(document: Document) -> Any:
    return document["spec"]["template"]["spec"]


def container(document: Document) -> Any:
    (found,) = template(document)["containers"]
    return found


def projected(document: Document) -> Any:
    (found,) = [each["projected"] for each in template(document)["volumes"] if "projected" in each]
    return found


def job(document: Document) -> Any:
    return document["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def beside(spec: Document) -> Any:
    (found,) = spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return found


GATEWAY, TIMESERIES, CACHE = ("Deployment", "gateway"), ("StatefulSet", "timeseries"), ("StatefulSet", "cache")
MUTATIONS = {
    "an unknown field": Mutation(GATEWAY, lambda it: container(it).update(enviroment=[]), "enviroment"),
    "an unknown field deep down": Mutation(
        TIMESERIES, lambda it: container(it)["startupProbe"]["grpc"].update(tls=True), "'tls' was unexpected"
    ),
    "a wrong type": Mutation(GATEWAY, lambda it: spec(it).update(minReadySeconds="1"), "is not of type"),
    "an api that is gone": Mutation(
        ("CronJob", "backup"), lambda it: it.update(apiVersion="batch/v1beta1"), "has no batch/v1beta1"
    ),
    "a missing secret": Mutation(
        CACHE, lambda it: template(it)["volumes"][0].update(secret={"secretName": "tls"}), "there is no Secret tls"
    ),
    "a missing key of a secret": Mutation(
        CACHE,
        lambda it: projected(it)["sources"][1]["secret"]["items"][0].update(key="url"),
        "there is no url in a Secret cache",
    ),
    "a secret in the environment": Mutation(
        CACHE, lambda it: container(it)["envFrom"].append({"secretRef": {"name": "cache"}}), "is in its environment"
    ),
    "a variable from elsewhere": Mutation(
        CACHE,
        lambda it: container(it)["env"].append({"name": "REDIS_URL", "valueFrom": {"secretKeyRef": {}}}),
        "has no plain value",
    ),
    "missing settings": Mutation(
        CACHE, lambda it: container(it)["envFrom"][0]["configMapRef"].update(name="set"), "there is no ConfigMap set"
    ),
    "a selector of other pods": Mutation(
        GATEWAY, lambda it: spec(it)["selector"]["matchLabels"].update({NAME: "gate"}), "not for its own pods"
    ),
    "a service that selects nothing": Mutation(
        ("Service", "cache"), lambda it: spec(it)["selector"].update({NAME: "redis"}), "it selects nothing"
    ),
    "a budget for nobody": Mutation(
        ("PodDisruptionBudget", "cache"),
        lambda it: spec(it)["selector"]["matchLabels"].update({NAME: "redis"}),
        "it selects nothing",
    ),
    "a policy that lets nobody through": Mutation(
        ("NetworkPolicy", "cache"),
        lambda it: spec(it)["egress"][0]["to"][0]["podSelector"]["matchLabels"].update({NAME: "x"}),
        "it lets nobody through",
    ),
    "an autoscaler of nobody": Mutation(
        ("HorizontalPodAutoscaler", "gateway"),
        lambda it: spec(it)["scaleTargetRef"].update(name="gateways"),
        "there is no Deployment gateways",
    ),
    "a governing service that is not there": Mutation(
        TIMESERIES, lambda it: spec(it).update(serviceName="times"), "there is no Service times"
    ),
    "a volume that is not mounted": Mutation(
        TIMESERIES, lambda it: container(it)["volumeMounts"].pop(), "the volume data is not mounted"
    ),
    "a mount of no volume": Mutation(
        TIMESERIES, lambda it: spec(it).pop("volumeClaimTemplates"), "there is no volume data"
    ),
    "a claim of nobody": Mutation(
        ("CronJob", "backup"),
        lambda it: job(it)["volumes"][0]["persistentVolumeClaim"].update(claimName="data-timeseries-1"),
        "there is no PersistentVolumeClaim data-timeseries-1",
    ),
    "a place beside a shard that there is not": Mutation(
        ("CronJob", "backup"),
        lambda it: beside(job(it))["labelSelector"]["matchLabels"].update({INDEX: "1"}),
        "it wants to be beside nobody",
    ),
    "data beside the volume": Mutation(
        TIMESERIES, lambda it: container(it)["volumeMounts"][-1].update(mountPath="/data"), "is on no volume"
    ),
    "a file that is not mounted": Mutation(
        CACHE, lambda it: container(it)["env"][1].update(value="/etc/openmanager/secrets/url"), "which is not mounted"
    ),
    "a port name that there is not": Mutation(
        ("Service", "gateway"), lambda it: spec(it)["ports"][0].update(targetPort="http"), "has no port http"
    ),
    "a port that leads elsewhere": Mutation(
        ("Service", "cache"), lambda it: spec(it)["ports"][0].update(port=50051), "leads to 50051"
    ),
    "a probe at no port": Mutation(
        CACHE, lambda it: container(it)["livenessProbe"]["grpc"].update(port=50059), "which is no port of it"
    ),
    "no probe": Mutation(CACHE, lambda it: container(it).pop("readinessProbe"), "has no readinessProbe"),
    "a variable that nothing reads": Mutation(
        CACHE,
        lambda it: container(it)["env"].append({"name": "OPENMANAGER_CACHE_TTL", "value": "1s"}),
        "nothing reads OPENMANAGER_CACHE_TTL",
    ),
    "a store's variable that nothing reads": Mutation(
        CACHE, lambda it: container(it)["env"].append({"name": "REDIS_HOST", "value": "h"}), "nothing reads REDIS_HOST"
    ),
    "root": Mutation(CACHE, lambda it: template(it)["securityContext"].update(runAsUser=0), "a user that is not root"),
    "every system call": Mutation(
        CACHE, lambda it: template(it)["securityContext"].pop("seccompProfile"), "the system calls of the runtime"
    ),
    "a writable root": Mutation(
        CACHE, lambda it: container(it)["securityContext"].pop("readOnlyRootFilesystem"), "cannot be written"
    ),
    "a capability": Mutation(
        CACHE, lambda it: container(it)["securityContext"]["capabilities"].update(add=["NET_RAW"]), "no capabilities"
    ),
    "the node's network": Mutation(
        CACHE, lambda it: template(it).update(hostNetwork=True), "no privileges of the node"
    ),
    "the node's files": Mutation(
        CACHE,
        lambda it: template(it)["volumes"].append({"name": "root", "hostPath": {"path": "/"}}),
        "kinds of volumes",
    ),
    "a token of Kubernetes": Mutation(
        CACHE, lambda it: template(it).pop("automountServiceAccountToken"), "no token of Kubernetes"
    ),
    "no limits": Mutation(CACHE, lambda it: container(it)["resources"].pop("limits"), "requests and limits"),
    "a moving image": Mutation(CACHE, lambda it: container(it).update(image="openmanager:latest"), "a fixed image"),
    "secrets for everybody": Mutation(CACHE, lambda it: projected(it).pop("defaultMode"), "others cannot read"),
    "a namespace for any pod": Mutation(
        ("Namespace", "openmanager"),
        lambda it: it["metadata"]["labels"].pop("pod-security.kubernetes.io/enforce"),
        "it takes any pod",
    ),
    "an end without a drain": Mutation(
        GATEWAY, lambda it: container(it).pop("lifecycle"), "it ends while it is still sent to"
    ),
    "an end that is too early": Mutation(
        GATEWAY, lambda it: template(it).update(terminationGracePeriodSeconds=15), "before it has ended"
    ),
    "a certificate of nobody": Mutation(
        ("Certificate", "cache"), lambda it: spec(it)["issuerRef"].update(name="letsencrypt"), "there is no Issuer"
    ),
}


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_found(mistake):
    mutation = MUTATIONS[mistake]
    documents = list(overlay("production"))
    changed = copy.deepcopy(named(documents, *mutation.of))
    documents = [changed if each is named(documents, *mutation.of) else each for each in documents]
    mutation.make(changed)
    # The others were held against the schemas already.
    assert [fault for fault in faults(documents, only=changed) if mutation.said in fault] != []
