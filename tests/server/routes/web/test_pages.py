"""What the pages for people are served as: no browser needed."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from server.api.clients import CLIENTS
from server.api.endpoints import ENDPOINTS
from server.api.schemas.sizes import PRESETS
from server.routes.web.pages import STATIC
from tests.server.api_node import ApiNode
from tests.server.api_server import Api, serve

HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.mark.parametrize("path", ["/", "/history", "/keys", "/playground", "/playground/fal-ai/flux/dev"])
def test_a_browser_gets_a_page_that_may_load_nothing_from_elsewhere(api: Api, path: str) -> None:
    page = api.http.get(path, headers=HTML)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "//" not in re.sub(r"https?:", "", policy)
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert api.http.get(str(page.url.join(address))).status_code == 200


def test_programs_get_the_reference_at_the_root(api: Api) -> None:
    answer = api.http.get("/")
    assert answer.text == api.http.get("/docs").text
    assert answer.headers["vary"] == "accept"


def test_pages_are_open_and_what_they_ask_for_is_not(tmp_path: Path) -> None:
    with serve(ApiNode(tmp_path, api_keys=("id:secret",))) as locked:
        assert locked.http.get("/", headers=HTML).status_code == 200
        assert locked.http.get("/ui/app.js").status_code == 200
        assert locked.http.get("/v1/clients").status_code == 401


def test_assets_cannot_be_left(api: Api) -> None:
    for path in ("/ui/nothing.js", "/ui/../pages.py", "/ui/%2e%2e/pages.py", "/ui/..%2fpages.py", "/ui"):
        assert api.http.get(path).status_code == 404


def test_every_client_of_the_command_has_its_lines(api: Api) -> None:
    listed = api.http.get("/v1/clients").json()["clients"]
    assert {entry["id"] for entry in listed} <= CLIENTS.keys()
    by_id = {entry["id"]: entry for entry in listed}
    assert api.url in "\n".join(by_id["js"]["lines"])
    assert "python" in by_id


def test_who_is_elsewhere_learns_no_path_of_this_machine(api: Api) -> None:
    answer = api.http.get("/v1/clients", headers={"x-forwarded-for": "203.0.113.9"})
    assert str(api.node.settings.data_dir) not in answer.text
    assert "fluxserve-ca-bundle.pem" in answer.text


def test_the_pages_know_fals_size_presets() -> None:
    text = (STATIC / "schema.js").read_text()
    written = re.search(r"PRESETS = ({.*?});", text, re.DOTALL)
    assert written is not None
    quoted = re.sub(r"(\w+):", r'"\1":', written[1]).replace(",\n}", "\n}")
    assert json.loads(quoted) == {name: list(sides) for name, sides in PRESETS.items()}


READER = """
import { fieldsOf } from "./schema.js"
import { blocks } from "./code.js"
let text = ""
for await (const chunk of process.stdin) text += chunk
const { documents, clients } = JSON.parse(text)
const kinds = documents.map((each) => fieldsOf(each).map(({ name, kind, isRequired }) => [name, kind, isRequired]))
const codes = clients.map((each) => blocks(each, "a/b", { prompt: "it's" }, "http://h/", false).map(({ text }) => text))
console.log(JSON.stringify({ kinds, codes }))
"""


def test_every_endpoint_becomes_a_form_and_every_client_code(api: Api, tmp_path: Path) -> None:
    if (node := shutil.which("node")) is None:
        pytest.skip("no node here")
    for module in STATIC.glob("*.js"):
        copy = tmp_path / module.with_suffix(".mjs").name
        copy.write_text(module.read_text().replace('.js"', '.mjs"'))
        subprocess.run([node, "--check", copy], check=True)
    (tmp_path / "read.mjs").write_text(READER.replace('.js"', '.mjs"'))
    address = "/api/openapi/queue/openapi.json"
    asked = {
        "documents": [api.http.get(address, params={"endpoint_id": id_}).json() for id_ in ENDPOINTS],
        "clients": api.http.get("/v1/clients").json()["clients"],
    }
    done = subprocess.run(
        [node, tmp_path / "read.mjs"], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    read = json.loads(done.stdout)
    for endpoint, fields in zip(ENDPOINTS.values(), read["kinds"], strict=True):
        kinds = {name: kind for name, kind, _ in fields}
        assert None not in kinds.values()
        needed = {name for name, _, is_required in fields if is_required}
        assert needed == set(endpoint.schema.model_json_schema().get("required", ()))
        assert all(kinds[name] in ("picture", "mask") for name in kinds if name.endswith(("image_url", "mask_url")))
        assert kinds.get("seed", "seed") == "seed"
    assert all(text and "undefined" not in text for texts in read["codes"] for text in texts)
    curl = next(text for (text, *_) in read["codes"] if text.startswith("curl"))
    assert json.loads(shlex.split(curl)[-1]) == {"prompt": "it's"}


def test_all_that_a_browser_loads_is_small() -> None:
    files = [path for path in STATIC.rglob("*") if path.suffix in (".js", ".css", ".html", ".svg")]
    assert sum(len(gzip.compress(path.read_bytes(), 6)) for path in files) < 150_000
