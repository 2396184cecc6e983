"""An audit as JUnit XML, which CI systems show as tests: one for each row that was compared."""

from typing import Any
from xml.etree import ElementTree

from safety_neurons.core.visible import visible
from safety_neurons.report.audit_results import Audit, AuditRow, Status
from safety_neurons.report.audit_tables import measured

# By status, the element that marks a test that did not pass.
_ELEMENTS: dict[Status, str] = {"BLOCK": "failure", "UNDERPOWERED": "error", "NOT TESTED": "skipped"}


def junit_xml(found: Audit) -> str:
    """The document as text. Whatever others wrote is escaped, and its control characters are shown as escapes."""
    count = [row.status for row in found.rows].count
    suite = ElementTree.Element(
        "testsuite",
        name=f"safety-neurons audit: {_safe(found.tuned.name)}",
        tests=str(len(found.rows)),
        failures=str(count("BLOCK")),
        errors=str(count("UNDERPOWERED")),
        skipped=str(count("NOT TESTED")),
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("verdict", found.verdict),
        ("base", f"{found.base.name} {found.base.identity}"),
        ("tuned", f"{found.tuned.name} {found.tuned.identity}"),
        ("judge", found.judge),
        ("prompts", found.prompts.name),
    ):
        ElementTree.SubElement(properties, "property", name=name, value=_safe(value))
    for row in found.rows:
        _add(suite, row)
    for text in (*found.reasons, *found.remarks):
        ElementTree.SubElement(suite, "system-out").text = _safe(text)
    ElementTree.indent(suite)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(suite, encoding="unicode")}\n'


def _add(suite: ElementTree.Element, row: AuditRow) -> None:
    test = ElementTree.SubElement(suite, "testcase", classname=f"audit.{row.measure}", name=_safe(row.name))
    if element := _ELEMENTS.get(row.status):
        about = {"message": _safe(row.reason)} | ({} if element == "skipped" else {"type": row.status})
        ElementTree.SubElement(test, element, about)
    ElementTree.SubElement(test, "system-out").text = _safe(f"{row.status}: {measured(row)} {row.reason}".strip())


def _safe(text: Any) -> str:
    """Text that XML can hold: no control characters, halves of characters, or code points that are none."""
    return visible(text, 2000)
