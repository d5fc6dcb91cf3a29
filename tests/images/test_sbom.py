import json

from images import sbom

STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u14
Description: GNU C Library
 Contains the standard libraries: used by nearly all programs.

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1:1.0
"""


def test_debian_packages_are_those_that_are_installed():
    assert list(sbom.debian_packages(STATUS, "debian")) == [
        sbom.component("libc6", "2.36-9+deb12u14", "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64")
    ]


def test_the_bill_names_every_python_package_once(tmp_path):
    assert sbom.main(["--name", "posttrain-cpu", "--output", str(tmp_path / "bill.json")]) == 0
    bill = json.loads((tmp_path / "bill.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    found = {component["purl"]: component for component in bill["components"]}
    assert len(found) == len(bill["components"])
    (numpy,) = (component for purl, component in found.items() if purl.startswith("pkg:pypi/numpy@"))
    assert "BSD-3-Clause" in numpy["licenses"][0]["expression"]
    assert bill["dependencies"] == [{"ref": "posttrain-cpu", "dependsOn": list(found)}]


def test_a_licence_is_a_name_or_an_expression_and_never_a_text():
    for package in sbom.python_packages():
        for entry in package.get("licenses", []):
            text = entry.get("expression") or entry["license"]["name"]
            assert text and "\n" not in text, package["name"]
