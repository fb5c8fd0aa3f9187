"""Write dist/openmanager.cdx.json: a CycloneDX 1.6 bill of the materials that `make setup` installs from the lock.

Each component has its licence, the SHA-256 of the files that the lock takes for it, what it needs, and a scope: `required`
of the program, `optional` of an extra, `excluded` of development; files of others that are in the package are among them.
On one system and Python the same lock gives the same bytes: the serial number is drawn from the content, and the time is
SOURCE_DATE_EPOCH, or left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from dependencies import LOCK, ROOT, Pin, Use, closure, own_needs, pins, project, uses
from licences import VENDORED, Policy, Vendored, licences
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

TARGET = ROOT / "dist" / "openmanager.cdx.json"
SCOPES = {
    Use.PROGRAM: ComponentScope.REQUIRED,
    Use.EXTRA: ComponentScope.OPTIONAL,
    Use.DEVELOPMENT: ComponentScope.EXCLUDED,
}
_LICENCES = LicenseFactory()


def component(pin: Pin, licence: str, use: Use) -> Component:
    """Return a dependency as CycloneDX has it."""
    purl = PackageURL("pypi", None, pin.name, pin.version)
    files = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(purl.to_string()),
        comment="the files that the lock takes for this version, one hash each",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=each) for each in pin.hashes],
    )
    return Component(
        type=ComponentType.LIBRARY,
        name=pin.name,
        version=pin.version,
        bom_ref=purl.to_string(),
        purl=purl,
        scope=SCOPES[use],
        licenses=[_LICENCES.make_from_string(licence)],
        external_references=[files],
    )


def vendored(kept: Vendored) -> Component:
    """Return files of others that are in the package, with the hash of each."""
    purl = PackageURL("npm", None, kept.name, kept.version)
    files = [
        ExternalReference(
            type=ExternalReferenceType.DISTRIBUTION,
            url=XsUri(purl.to_string()),
            comment=file.name,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=hashlib.sha256(file.read_bytes()).hexdigest())],
        )
        for file in sorted((ROOT / kept.folder).iterdir())
    ]
    return Component(
        type=ComponentType.LIBRARY,
        name=kept.name,
        version=kept.version,
        bom_ref=purl.to_string(),
        purl=purl,
        scope=ComponentScope.REQUIRED,
        licenses=[_LICENCES.make_from_string(kept.licence)],
        external_references=files,
    )


def program() -> Component:
    """Return what all the others are there for."""
    own = project()["project"]
    purl = PackageURL("pypi", None, own["name"], own["version"])
    return Component(
        type=ComponentType.APPLICATION,
        name=own["name"],
        version=own["version"],
        description=own["description"],
        bom_ref=purl.to_string(),
        purl=purl,
        licenses=[_LICENCES.make_from_string(own["license"])],
    )


def bill() -> Bom:
    """Return the bill of what the lock installs on this system."""
    found, used = licences(Policy.load()), uses()
    installed = [pin for pin in pins(LOCK) if pin.is_installed]
    if other := [pin.name for pin in installed if Version(version(pin.name)) != Version(pin.version)]:
        sys.exit(f"these are not installed as the lock has them, run `make setup`: {', '.join(other)}")
    components = {pin.name: component(pin, found[pin.name], used[pin.name]) for pin in installed}
    kept = [vendored(each) for each in VENDORED]
    bom = Bom(components=[*components.values(), *kept])
    bom.metadata.component = program()
    own = own_needs(*project()["project"]["optional-dependencies"])
    bom.register_dependency(
        bom.metadata.component, [*(components[canonicalize_name(need.name)] for need in own), *kept]
    )
    for name, needed in closure(Requirement(name) for name in components).items():
        bom.register_dependency(components[name], [components[each] for each in needed])
    return bom


def render(bom: Bom, epoch: str) -> str:
    """Return the JSON; the time is `epoch`, in seconds since 1970, and left out when that is ''."""
    content = json.loads(JsonV1Dot6(bom).output_as_string())
    del content["serialNumber"], content["metadata"]["timestamp"]
    if epoch:
        content["metadata"]["timestamp"] = datetime.fromtimestamp(int(epoch), UTC).isoformat()
    content["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(content, sort_keys=True)).urn
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def main() -> None:
    """Write the file that is named, or TARGET."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    text = render(bill(), os.environ.get("SOURCE_DATE_EPOCH", ""))
    if wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"this would be no valid bill: {wrong}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(f"{target}: {len(json.loads(text)['components'])} components")


if __name__ == "__main__":
    main()
