"""Training by HTTP: the routes, their description, what they refuse, and the password of whoever serves them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from fastapi.testclient import TestClient

from lib_lora.errors import BadConfig
from lib_lora.train.config import fields, find
from lib_lora.train.jobs import EVENTS
from lib_lora.train.presets import PRESETS
from lib_lora.ui.api import PREFIX, add_api, of_this_machine, settings_schema
from lib_lora.ui.trainer import Point, Sample
from tests.ui.fake_trainer import FakeTrainer, finished_run, running

STRANGE = ["..%2F..%2Fetc%2Fpasswd", "%2Fetc", "a%00b", "%2e%2e", "rex-1%2F..", "C:%5Cx", "nobody", "x" * 5000]


@pytest.fixture
def trainer(tmp_path: Path) -> FakeTrainer:
    return FakeTrainer(tmp_path)


@pytest.fixture
def http(trainer: FakeTrainer) -> TestClient:
    app = FastAPI()
    app.add_api_route(f"{PREFIX}/status", lambda: "theirs", methods=["GET"])
    add_api(app, trainer)
    return TestClient(app)


def test_a_job_is_submitted_and_listed(http: TestClient, trainer: FakeTrainer, tmp_path: Path) -> None:
    settings = {"preset": "style", "output.name": "rex", "training.steps": 5, "data.delete_tags": ["a", "b"]}
    answer = http.post(f"{PREFIX}/jobs", json=settings)
    assert (answer.status_code, answer.json()) == (201, {"id": "rex-1"})
    assert trainer.submitted == [settings]
    facts = finished_run(
        tmp_path, "rex-1", saved={100: tmp_path / "a.safetensors"}, files=(tmp_path / "b.safetensors",),
        points=(Point(1, 0.5, 0.4, 1e-4),), samples=(Sample(1, "a <b>", tmp_path / "1.png"),), message="done",
    )  # fmt: skip
    trainer.known = [facts]
    (listed,) = http.get(f"{PREFIX}/jobs").json()
    one = http.get(f"{PREFIX}/jobs/rex-1").json()
    assert (listed["id"], listed["state"], listed["points"], listed["samples"]) == ("rex-1", "finished", [], [])
    assert one["points"] == [{"step": 1, "loss": 0.5, "smooth": 0.4, "lr": 1e-4}]
    assert one["samples"] == [{"step": 1, "prompt": "a <b>", "path": str(tmp_path / "1.png")}]
    assert one["saved"] == {"100": str(tmp_path / "a.safetensors")} and one["files"] == [str(facts.files[0])]
    assert http.get(f"{PREFIX}/jobs/rex-1/settings").json() == settings


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"training.steps": "5"}, "training.steps = '5' is not accepted; give a whole number from 1"),
        ({"optimizer.lr": -1}, "optimizer.lr = -1.0 is not accepted"),
        ({"network.rang": 4}, "setting 'network.rang' is unknown"),
        ({"preset": "best"}, "preset 'best' is unknown"),
        ({"concept": [{"x": 1}]}, "setting 'concept.x' is unknown"),
    ],
)
def test_a_setting_that_is_not_accepted_is_named(
    http: TestClient, trainer: FakeTrainer, wrong: dict[str, Any], told: str
) -> None:
    answer = http.post(f"{PREFIX}/jobs", json=wrong)
    assert answer.status_code == 422 and told in answer.json()["detail"]
    assert not trainer.submitted


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"3"])
def test_a_body_that_is_no_object_is_refused(http: TestClient, trainer: FakeTrainer, body: bytes) -> None:
    answer = http.post(f"{PREFIX}/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and not trainer.submitted


def test_a_form_of_another_site_submits_nothing(http: TestClient, trainer: FakeTrainer) -> None:
    """What a page elsewhere can send without asking first has no JSON type."""
    answer = http.post(f"{PREFIX}/jobs", content=b'{"training.steps": 5}', headers={"content-type": "text/plain"})
    assert answer.status_code == 422 and not trainer.submitted


def test_status_is_ours_and_whole(http: TestClient, trainer: FakeTrainer) -> None:
    trainer.now = dataclasses.replace(running(3), result=Path("x.safetensors"), waiting=("a", "b"))
    told = http.get(f"{PREFIX}/status").json()
    assert told == json.loads(json.dumps(trainer.now.as_json()))


def test_events_from_any_place_on(http: TestClient, trainer: FakeTrainer, tmp_path: Path) -> None:
    trainer.known = [finished_run(tmp_path, "rex-1")]
    path = f"{PREFIX}/jobs/rex-1/events"
    assert http.get(path).json() == {"events": [], "next": 0}
    (tmp_path / "rex-1").mkdir()
    file = tmp_path / "rex-1" / EVENTS
    file.write_text('{"type": "started", "step": 0}\n{"type": "step", "step": 1}\n{"type": "st', encoding="utf-8")
    first = http.get(path).json()
    assert [event["type"] for event in first["events"]] == ["started", "step"]
    with file.open("a", encoding="utf-8") as more:
        more.write('ep", "step": 2}\n')
    then = http.get(path, params={"after": first["next"]}).json()
    assert then == {"events": [{"type": "step", "step": 2}], "next": file.stat().st_size}
    assert http.get(path, params={"after": then["next"]}).json() == {"events": [], "next": then["next"]}
    assert http.get(path, params={"after": 10**9}).json()["events"] == []
    for bad in ("-1", "x", str(2**70)):
        assert http.get(path, params={"after": bad}).status_code == 422


def test_what_is_asked_of_a_job_fits_its_state(http: TestClient, trainer: FakeTrainer, tmp_path: Path) -> None:
    trainer.known = [finished_run(tmp_path, "rex-1", state="running"), finished_run(tmp_path, "a-1")]
    trainer.now = dataclasses.replace(running(), id="rex-1", waiting=("w-1",))

    def ask(id: str, what: str) -> int:
        return http.post(f"{PREFIX}/jobs/{id}/{what}").status_code

    for what in ("pause", "save", "cancel"):
        answer = http.post(f"{PREFIX}/jobs/a-1/{what}")
        assert answer.status_code == 409 and "'a-1' is finished" in answer.json()["detail"]
    assert [ask("rex-1", "save"), ask("rex-1", "pause")] == [200, 200]
    assert [ask("rex-1", "pause"), ask("rex-1", "save")] == [409, 409]
    assert [ask("rex-1", "resume"), ask("rex-1", "cancel")] == [200, 200]
    assert [name for name, _ in trainer.calls if name in ("pause", "resume", "cancel", "save_now")] == [
        "save_now", "pause", "resume", "cancel",
    ]  # fmt: skip
    assert http.post(f"{PREFIX}/jobs/a-1/resume", json={"training.steps": 9}).status_code == 200
    assert trainer.named("resume")[-1] == ("a-1", {"training.steps": 9})
    assert http.post(f"{PREFIX}/jobs/a-1/resume", json=[1]).status_code == 422
    trainer.now = dataclasses.replace(trainer.now, state="cancelled")
    trainer.known.append(finished_run(tmp_path, "w-1", state="queued"))
    assert ask("w-1", "cancel") == 200 and trainer.now.waiting == ()
    trainer.errors = {"resume": BadConfig("run 'a-1' is finished; repeat it"), "forget": BadConfig("it waits; cancel")}
    assert http.post(f"{PREFIX}/jobs/a-1/resume").json() == {"detail": "run 'a-1' is finished; repeat it"}
    assert http.delete(f"{PREFIX}/jobs/a-1").status_code == 409
    trainer.errors = {}
    assert http.delete(f"{PREFIX}/jobs/a-1").status_code == 200
    assert [run.id for run in trainer.known] == ["rex-1", "w-1"]


@pytest.mark.parametrize("id", STRANGE)
def test_ids_of_no_job_are_not_found(http: TestClient, trainer: FakeTrainer, id: str) -> None:
    for method, end in (
        ("GET", ""), ("GET", "/events"), ("GET", "/settings"), ("DELETE", ""),
        *(("POST", f"/{what}") for what in ("pause", "resume", "cancel", "save")),
    ):  # fmt: skip
        answer = http.request(method, f"{PREFIX}/jobs/{id}{end}")
        assert answer.status_code == 404, (method, end)
    assert not trainer.named("forget") and not trainer.named("resume")


def test_the_description_is_whole(http: TestClient) -> None:
    for described in (http.get(f"{PREFIX}/openapi.json").json(), http.app.openapi()):  # type: ignore[attr-defined]
        paths = described["paths"]
        ours = {path: sorted(paths[path]) for path in paths if path.startswith(PREFIX)}
        assert ours == {
            f"{PREFIX}/status": ["get"],
            f"{PREFIX}/settings": ["get"],
            f"{PREFIX}/jobs": ["get", "post"],
            f"{PREFIX}/jobs/{{id}}": ["delete", "get"],
            f"{PREFIX}/jobs/{{id}}/events": ["get"],
            f"{PREFIX}/jobs/{{id}}/settings": ["get"],
            **{f"{PREFIX}/jobs/{{id}}/{what}": ["post"] for what in ("cancel", "pause", "resume", "save")},
        }
        for path in ours:
            for operation in paths[path].values():
                assert operation["summary"] and operation["description"], path
        body = paths[f"{PREFIX}/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["properties"]["training.steps"]["maximum"] == 10000000
        answer = paths[f"{PREFIX}/jobs/{{id}}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        name = answer["$ref"].rpartition("/")[2]
        assert set(described["components"]["schemas"][name]["properties"]) >= {"id", "state", "saved", "points"}


def test_every_setting_is_declared_as_it_is_checked(http: TestClient) -> None:
    schema = http.get(f"{PREFIX}/settings").json()
    assert schema == settings_schema()
    assert set(schema["properties"]) == {"preset", "concept", *(item.key for item in fields())}
    assert schema["properties"]["preset"]["enum"] == list(PRESETS)
    for key, said in schema["properties"].items():
        if key in ("preset", "concept"):
            continue
        item = find(key)
        assert said["description"] == item.help
        for end in ("minimum", "maximum"):
            if end in said:
                item.check(item.type(said[end]))
        for choice in said.get("enum", ()):
            item.check(choice)
        if "default" in said:
            item.check(said["default"])


def ask_for_password(credentials: HTTPBasicCredentials = Depends(HTTPBasic())) -> bool:  # noqa: B008
    if (credentials.username, credentials.password) != ("me", "secret"):
        raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})
    return True


def test_every_route_asks_for_the_password(trainer: FakeTrainer, tmp_path: Path) -> None:
    trainer.known = [finished_run(tmp_path, "rex-1")]
    app = FastAPI()
    add_api(app, trainer, [Depends(ask_for_password)])
    http = TestClient(app)
    routes = [r for r in app.router.routes if getattr(r, "path", "").startswith(PREFIX)]
    assert len(routes) == 13
    for route in routes:
        for method in route.methods:  # type: ignore[attr-defined]
            path = route.path.replace("{id}", "rex-1")  # type: ignore[attr-defined]
            assert http.request(method, path).status_code == 401, path
            assert http.request(method, path, auth=("me", "wrong")).status_code == 401, path
    assert not trainer.calls
    assert http.get(f"{PREFIX}/jobs", auth=("me", "secret")).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "127.0.0.1:7866"}, 200),
        ({"host": "localhost:7866", "origin": "http://localhost:7866"}, 200),
        ({"host": "127.0.0.1:7866", "origin": "http://evil.example"}, 403),
        ({"host": "127.0.0.1:7866", "origin": "null"}, 403),
        ({"host": "evil.example:7866"}, 403),
    ],
)
def test_pages_of_other_sites_are_turned_away(trainer: FakeTrainer, headers: dict[str, str], code: int) -> None:
    app = FastAPI()
    add_api(app, trainer, [Depends(of_this_machine)])
    assert TestClient(app).get(f"{PREFIX}/status", headers=headers).status_code == code


def test_a_second_adding_replaces_the_first(tmp_path: Path, make_other: Callable[[], FakeTrainer]) -> None:
    app = FastAPI()
    first, second = FakeTrainer(tmp_path / "a"), make_other()
    add_api(app, first)
    add_api(app, second)
    TestClient(app).get(f"{PREFIX}/status")
    assert (first.calls, second.calls) == ([], [("status", ())])


@pytest.fixture
def make_other(tmp_path: Path) -> Callable[[], FakeTrainer]:
    return lambda: FakeTrainer(tmp_path / "b")
