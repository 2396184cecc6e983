"""JUnit XML: whatever others wrote, it is XML that holds only that text."""

from typing import Any
from xml.etree import ElementTree

import pytest

from builders.hostile import HOSTILE, forbidden
from builders.report import audited
from safety_neurons.audits.junit import junit_xml
from safety_neurons.report.audit_results import Audit
from safety_neurons.report.audit_tables import audit_tables

NAMES = ("testsuite", "properties", "property", "testcase", "failure", "error", "skipped", "system-out")


def poisoned(text: str) -> dict[str, Any]:
    content = audited()
    for row in content["rows"]:
        row["name"] += text
        row["reason"] += text
    content["tuned"]["name"] = text
    content["prompts"]["name"] = text
    return content | {"reasons": [text], "remarks": [text], "judge": text}


def test_a_row_is_a_test() -> None:
    found = Audit.model_validate(audited())
    suite = ElementTree.fromstring(junit_xml(found))
    assert {name: suite.attrib[name] for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    by_name = {one.attrib["name"]: one for one in suite.findall("testcase")}
    failure = by_name["direct"].find("failure")
    assert failure is not None
    assert (failure.attrib["type"], failure.attrib["message"]) == ("BLOCK", "why it is block")
    assert [child.tag for child in by_name["benign"]] == ["system-out"]
    said = by_name["direct"].find("system-out")
    assert said is not None
    assert "90% to 60%" in str(said.text)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_text_breaks_the_document(text: str) -> None:
    document = junit_xml(Audit.model_validate(poisoned(text)))
    assert forbidden(document) == []
    suite = ElementTree.fromstring(document.encode())
    assert {one.tag for one in suite.iter()} == set(NAMES)
    assert [len(suite.findall(f".//{name}")) for name in ("testcase", "failure")] == [5, 1]


def test_the_tables_have_every_row() -> None:
    found = Audit.model_validate(audited())
    safety, costs, categories, flips = audit_tables(found)
    assert [len(table.rows) for table in (safety, costs, categories, flips)] == [3, 3, 2, 1]
    # A loss is a negative change of refusals, and significant.
    assert safety.rows[0].cells[3].text == "\N{MINUS SIGN}30* (\N{MINUS SIGN}40 to \N{MINUS SIGN}20)"
