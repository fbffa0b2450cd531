"""A bill of materials as CycloneDX 1.6, JSON. Source: https://cyclonedx.org/docs/1.6/json/."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import conda_appliance
from conda_appliance import resources
from conda_appliance.bill import Bill, Component, expression

_TYPES = {"deb": "library", "conda": "library", "pypi": "library", "program": "application", "file": "file"}


def write(bill: Bill) -> str:
    """The bill's text: the same for the same bill."""
    root = f"appliance-{bill.name}"
    number = bill.digest()
    serial = "-".join((number[:8], number[8:12], f"5{number[13:16]}", f"8{number[17:20]}", number[20:]))
    value: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(bill.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {
                "components": [
                    {"type": "application", "name": "conda-appliance", "version": conda_appliance.__version__}
                ]
            },
            "component": {
                "type": "firmware",
                "bom-ref": root,
                "name": bill.name,
                "version": bill.version,
                **({"description": bill.summary} if bill.summary else {}),
                "properties": [{"name": "conda-appliance:lock", "value": bill.lock}],
            },
        },
        "components": [_component(one) for one in bill.components],
        "dependencies": [{"ref": root, "dependsOn": [one.ref for one in bill.components]}],
        "compositions": [{"aggregate": "complete" if bill.whole else "incomplete", "assemblies": [root]}],
    }
    return resources.json_text(value)


def _component(one: Component) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": _TYPES[one.kind],
        "bom-ref": one.ref,
        **({"supplier": _supplier(one.supplier)} if one.supplier else {}),
        "name": one.name,
        "version": one.version,
    }
    if one.sha256:
        made["hashes"] = [{"alg": "SHA-256", "content": one.sha256}]
    if licences := _licences(one):
        made["licenses"] = licences
    if one.purl:
        made["purl"] = one.purl
    if one.url:
        made["externalReferences"] = [{"type": "distribution", "url": one.url}]
    made["properties"] = [
        {"name": "conda-appliance:part", "value": one.part},
        *({"name": "conda-appliance:licence-text", "value": text} for text in one.texts),
    ]
    return made


def _supplier(text: str) -> dict[str, Any]:
    match = re.fullmatch(r"\s*(.*?)\s*<([^<>]+@[^<>]+)>\s*", text)
    if match and match[1]:
        return {"name": match[1], "contact": [{"email": match[2]}]}
    return {"name": text}


def _licences(one: Component) -> list[dict[str, Any]]:
    """One expression alone, or a list of single licences: the format takes no mixture."""
    known = [expression(text) for text in one.licences]
    if len(known) == 1 and known[0]:
        return [{"expression": known[0]}]
    return [
        {"license": {"id": known_as} if re.fullmatch(r"[A-Za-z0-9.+-]+", known_as or " ") else {"name": text}}
        for text, known_as in zip(one.licences, known, strict=True)
    ]
