"""A bill of materials as SPDX 2.3, JSON. Source: https://spdx.github.io/spdx-spec/v2.3/."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import conda_appliance
from conda_appliance import resources
from conda_appliance.bill import Bill, Component, expression


def write(bill: Bill) -> str:
    """The bill's text: the same for the same bill."""
    root = f"SPDXRef-appliance-{bill.name}"
    others: dict[str, str] = {}
    packages = [
        {
            "SPDXID": root,
            "name": bill.name,
            "versionInfo": bill.version,
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": False,
            "primaryPackagePurpose": "FIRMWARE",
            **({"summary": bill.summary} if bill.summary else {}),
        }
    ]
    packages += [_package(one, others) for one in bill.components]
    value: dict[str, Any] = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"{bill.name}-{bill.version}",
        "documentNamespace": f"https://spdx.org/spdxdocs/{bill.name}-{bill.version}-{bill.digest()}",
        "creationInfo": {
            "created": datetime.fromtimestamp(bill.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": [f"Tool: conda-appliance-{conda_appliance.__version__}"],
        },
        "documentDescribes": [root],
        "packages": packages,
        **(
            {
                "hasExtractedLicensingInfos": [
                    {"licenseId": name, "name": text, "extractedText": f"named so by its package: {text}"}
                    for name, text in sorted(others.items())
                ]
            }
            if others
            else {}
        ),
        "relationships": [
            {
                "spdxElementId": root,
                "relationshipType": "CONTAINS",
                "relatedSpdxElement": f"SPDXRef-{one.ref}",
            }
            for one in bill.components
        ],
    }
    return resources.json_text(value)


def _package(one: Component, others: dict[str, str]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "SPDXID": f"SPDXRef-{one.ref}",
        "name": one.name,
        "versionInfo": one.version,
        "downloadLocation": one.url or "NOASSERTION",
        "filesAnalyzed": False,
        "supplier": _supplier(one.supplier),
        "licenseDeclared": _declared(one, others),
        "licenseConcluded": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "comment": f"in {one.part}" + (f"; licence texts: {', '.join(one.texts)}" if one.texts else ""),
    }
    if one.kind == "file":  # as a package: a file element would have to have a SHA-1
        made["primaryPackagePurpose"] = "FILE"
    if one.sha256:
        made["checksums"] = [{"algorithm": "SHA256", "checksumValue": one.sha256}]
    if one.purl:
        made["externalRefs"] = [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": one.purl}
        ]
    return made


def _supplier(text: str) -> str:
    match = re.fullmatch(r"\s*(.*?)\s*<([^<>]+@[^<>]+)>\s*", text)
    if match and match[1]:
        return f"Organization: {match[1]} ({match[2]})"
    return f"Organization: {text}" if text else "NOASSERTION"


def _declared(one: Component, others: dict[str, str]) -> str:
    """All licences of a component, joined; what is no SPDX licence becomes a reference that the document explains."""
    parts = []
    for text in one.licences:
        known = expression(text)
        if not known:
            known = "LicenseRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-")[:60]
            others[known] = text
        parts.append(f"({known})" if re.search(r"\s", known) and len(one.licences) > 1 else known)
    return " AND ".join(parts) or "NOASSERTION"
