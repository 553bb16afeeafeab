"""The description of the service: that it is OpenAPI, that it names every route, and that the answers are as it says."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import jsonschema
import openapi_spec_validator
import pytest

from edge_effdet.serving import app
from edge_effdet.serving.openapi import BASE, openapi_document
from tests.emulation.small_detector import make_pictures
from tests.serving import RunningServer, png

UNDESCRIBED = {"/", "/docs"}
"""Pages for people."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    for number, picture in enumerate(make_pictures()):
        (folder / f"{number}.png").write_bytes(png(picture))
    return folder


@pytest.fixture(scope="module")
def server(small_engine, folder):
    with RunningServer(small_engine, str(folder)) as running:
        assert running.service.live.wait_newer(0, 60)
        yield running


@pytest.fixture(scope="module")
def document(server) -> dict[str, Any]:
    return server.ask_json("GET", "/openapi.json")


@pytest.fixture(scope="module")
def guarded(small_engine, tmp_path_factory):
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("a-token-of-twenty-letters\n")
    token.chmod(0o600)
    with RunningServer(small_engine, token_file=token) as running:
        yield running


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def require(document: dict[str, Any], name: str, value: Any) -> None:
    """Raises where a value is not of a type that the document describes, or has a field more than that."""
    closed = json.loads(json.dumps(document))
    for schema in closed["components"]["schemas"].values():
        schema["additionalProperties"] = False
    # The record of an engine has more fields, and docs/engine-record.schema.json describes them.
    closed["components"]["schemas"]["Engine"]["additionalProperties"] = True
    jsonschema.Draft202012Validator({**closed, "$ref": f"#/components/schemas/{name}"}).validate(value)


def test_it_is_openapi(document, guarded):
    openapi_spec_validator.validate(document)
    openapi_spec_validator.validate(guarded.ask_json("GET", "/openapi.json"))
    broken = json.loads(json.dumps(document))
    del broken["paths"]["/detect"]["post"]["responses"]["200"]["description"]
    with pytest.raises(Exception, match="description"):
        openapi_spec_validator.validate(broken)


def test_every_route_is_described_and_nothing_else(document, server):
    routes = {
        (route.path.replace("{name}", server.service.name), method.lower())
        for route in app.make_app(server.service)._app.routes
        for method in route.methods - {"HEAD"}
        if not route.path.startswith("/page/") and "/versions/1" not in route.path
    }
    described = {(path, method) for path, method, _ in operations(document)}
    assert routes - {(path, "get") for path in UNDESCRIBED} == described


def test_each_operation_has_a_name_of_its_own_a_group_and_an_example(document):
    found = [operation for _, _, operation in operations(document)]
    names = [operation["operationId"] for operation in found]
    assert len(set(names)) == len(names)
    groups = {tag["name"] for tag in document["tags"]}
    assert {tag for operation in found for tag in operation["tags"]} == groups
    for path, _, operation in operations(document):
        (sample,) = operation["x-codeSamples"]
        assert f"{BASE}{path}" in sample["source"]
        words = shlex.split(sample["source"])
        assert "curl" in words


def test_the_answers_are_as_it_says(document, server):
    picture = png(make_pictures()[0])
    require(document, "Found", server.ask_json("POST", "/detect", picture))
    require(document, "Live", server.ask_json("GET", "/live.json?score_threshold=0.05"))
    require(document, "Engine", server.ask_json("GET", "/engine"))
    require(document, "Server", server.ask_json("GET", "/v2"))
    require(document, "Model", server.ask_json("GET", "/v2/models/small"))
    data = [base64.b64encode(picture).decode()]
    request = {"inputs": [{"name": "IMAGE", "datatype": "BYTES", "shape": [1, 1], "data": data}]}
    require(document, "InferRequest", request)
    answer = server.ask_json("POST", "/v2/models/small/infer", json.dumps(request))
    require(document, "InferResponse", answer)
    require(document, "Error", json.loads(server.ask("POST", "/detect", b"")[2]))
    with pytest.raises(jsonschema.ValidationError):
        require(document, "Found", {"detections": []})
    with pytest.raises(jsonschema.ValidationError):
        require(document, "Error", {"error": "a", "more": 1})


def test_examples_are_of_the_types_that_they_illustrate(document):
    count = 0

    def look(part: Any) -> None:
        nonlocal count
        if isinstance(part, dict):
            if "example" in part and "$ref" in part.get("schema", {}):
                require(document, part["schema"]["$ref"].rpartition("/")[2], part["example"])
                count += 1
            for each in part.values():
                look(each)
        elif isinstance(part, list):
            for each in part:
                look(each)

    look(document)
    assert count > 8


def test_errors_are_answered_with_a_status_that_is_described(document, server):
    cases = [
        ("post", "/detect", "/detect", b""),
        ("post", "/detect", "/detect", b"no picture"),
        ("post", "/detect", "/detect?score_threshold=2", png(make_pictures()[0])),
        ("get", "/live.json", "/live.json?class=none", None),
        ("get", "/live.mjpeg", "/live.mjpeg?class=none", None),
        ("post", "/v2/models/small/infer", "/v2/models/small/infer", b"{}"),
        ("post", "/session", "/session", b"x"),
    ]
    for method, path, asked, body in cases:
        status, sentence = server.error(method.upper(), asked, body)
        assert str(status) in document["paths"][path][method]["responses"], (asked, status, sentence)


def test_a_token_is_described_only_where_one_is_asked_for(document, guarded, server):
    assert "securitySchemes" not in document["components"]
    assert "security" not in document
    other = guarded.ask_json("GET", "/openapi.json")
    assert [list(each) for each in other["security"]] == [["bearer"], ["cookie"]]
    for path, method, operation in operations(other):
        status, _, content = guarded.ask(method.upper(), path, b"x" if method == "post" else None)
        if operation.get("security") == []:
            assert status != 401 or path == "/session"
        else:
            assert (status, "error" in json.loads(content)) == (401, True)
            assert "401" in operation["responses"]


def test_the_limits_are_those_of_the_service(small_engine, server):
    from edge_effdet.serving.options import LimitOptions

    with RunningServer(small_engine, limits=LimitOptions(max_body_mib=3, max_megapixels=7)) as limited:
        text = openapi_document(limited.service)["components"]["responses"]["TooLarge"]["description"]
    assert re.search(r"\b3 MiB", text)
    assert re.search(r"\b7 million", text)
