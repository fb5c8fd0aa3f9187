"""Who may call whom, as the NetworkPolicies of deploy/k8s have it."""

from __future__ import annotations

from deploy.manifests import Document, Labels, pods, selects

ANYBODY = "anybody"


def edges(documents: list[Document]) -> set[tuple[str, str, int]]:
    """Return who may call whom at which port, as the NetworkPolicies have it; `anybody` is somebody who is no pod here."""
    labels: dict[str, Labels | None] = {pod.name: pod.labels for pod in pods(documents)}
    return {
        (source, target.name, port)
        for target in pods(documents)
        for port in target.ports.values()
        for source, own in {**labels, ANYBODY: None}.items()
        if _lets(documents, "Ingress", target.labels, own, port)
        and (own is None or _lets(documents, "Egress", own, target.labels, port))
    }


def outward(documents: list[Document]) -> set[tuple[str, str, int]]:
    """Return which pods may call which addresses outside, at which port."""
    return {
        (pod.name, peer["ipBlock"]["cidr"], port["port"])
        for pod in pods(documents)
        for rule in _rules(documents, "Egress", pod.labels) or []
        for peer in rule["to"]
        if "ipBlock" in peer
        for port in rule["ports"]
    }


def _rules(documents: list[Document], direction: str, labels: Labels) -> list[Document] | None:
    """Return the rules for a pod in one direction; None where nothing limits it."""
    policies = [
        each["spec"]
        for each in documents
        if each["kind"] == "NetworkPolicy" and direction in each["spec"]["policyTypes"]
    ]
    mine = [each for each in policies if selects(each["podSelector"], labels)]
    return [rule for each in mine for rule in each.get(direction.lower(), [])] if mine else None


def _lets(documents: list[Document], direction: str, labels: Labels, other: Labels | None, port: int) -> bool:
    rules = _rules(documents, direction, labels)
    if rules is None:
        return True
    side = "from" if direction == "Ingress" else "to"
    return any(
        any(_is_peer(peer, other) for peer in rule.get(side, [{}]))
        and ("ports" not in rule or port in {each["port"] for each in rule["ports"]})
        for rule in rules
    )


def _is_peer(peer: Document, labels: Labels | None) -> bool:
    if not peer:  # a rule that names no peers is for all
        return True
    return (
        "podSelector" in peer
        and "namespaceSelector" not in peer
        and labels is not None
        and selects(peer["podSelector"], labels)
    )
