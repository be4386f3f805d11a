"""The playground in a real browser, against a real server that really draws."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.acceptance.serving import Server
from tests.server.routes.web.prefix_proxy import below

SMALL = {"image_size": {"width": 256, "height": 256}, "num_inference_steps": 12}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def at(url: str, endpoint: str = "fal-ai/flux/dev", **values: Any) -> str:
    """The address of a filled form."""
    return f"{url}/playground/{endpoint}#{json.dumps(SMALL | values)}"


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).first.click()


def test_draws_shows_unfinished_pictures_and_offers_the_seed_and_code(server: Server, open_page: Any) -> None:
    page = open_page(at(server.url, prompt="a red circle on a blue background", num_inference_steps=40), server.url)
    press(page, "Draw")
    page.wait_for_selector("img.preview")
    page.wait_for_selector(".run.done img")
    with page.expect_download() as loading:
        page.get_by_text("Download").click()
    drawn = np.asarray(Image.open(io.BytesIO(Path(loading.value.path()).read_bytes())).convert("RGB")).astype(int)
    assert drawn.shape == (256, 256, 3)
    assert 0.02 < (drawn[..., 0] > drawn[..., 2] + 60).mean() < 0.6  # some red
    assert (drawn[..., 2] > drawn[..., 0] + 60).mean() > 0.3  # and blue around it
    press(page, "Use this seed")
    seed = page.input_value("#field-seed")
    assert seed.isdecimal()
    press(page, "As code")
    command = page.inner_text(".as-code pre")
    assert f'"seed": {seed}' in command
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert str(json.loads(done.stdout)["seed"]) == seed
    for client in page.eval_on_selector_all(".as-code option", "all => all.map((each) => each.value)"):
        page.select_option(".as-code select", client)
        assert "undefined" not in page.inner_text(".as-code")
        assert page.inner_text(".as-code pre >> nth=0")


def test_escape_cancels_and_the_keyboard_alone_is_enough(server: Server, open_page: Any) -> None:
    page = open_page(at(server.url, image_size="square_hd", num_inference_steps=50), server.url)
    page.wait_for_selector("#field-prompt")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "field-prompt":
            break
    page.keyboard.type("a green square")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".run.drawing")
    page.keyboard.press("Escape")
    page.wait_for_selector(".run.cancelled")
    assert "Cancelled." in page.inner_text(".run")


def test_a_refusal_stands_under_its_field_and_takes_the_focus(server: Server, open_page: Any) -> None:
    page = open_page(at(server.url, prompt="x", guidance_scale=99), server.url)
    press(page, "Draw")
    wrong = page.wait_for_selector(".field.wrong .error")
    assert "less than or equal to 20" in wrong.inner_text()
    assert page.evaluate("document.activeElement.id") == "field-guidance_scale"
    assert page.get_attribute("#field-guidance_scale", "aria-invalid") == "true"
    assert page.query_selector(".run") is None


def test_a_prompt_is_asked_for_before_anything_is_sent(server: Server, open_page: Any) -> None:
    page = open_page(f"{server.url}/", server.url)
    press(page, "Draw")
    assert "Needed" in page.inner_text('[data-field="prompt"] .error')


def test_a_mask_is_painted_over_an_uploaded_picture(server: Server, open_page: Any, tmp_path: Path) -> None:
    picture = Image.new("RGB", (128, 128), (30, 60, 210))
    picture.save(tmp_path / "blue.png")
    values = {"output_format": "png", "prompt": "a yellow circle on a blue background", "seed": 1}
    page = open_page(at(server.url, "fal-ai/flux-pro/v1/fill", **values), server.url)
    page.set_input_files("#field-image_url", tmp_path / "blue.png")
    page.wait_for_selector("#field-mask_url[role=application]")
    page.locator('#field-mask_url[width="128"]').wait_for()
    page.locator("#field-mask_url").hover()  # which may scroll: only from here on the field stays where it is
    box = page.locator("#field-mask_url").bounding_box()
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5)
    page.mouse.up()
    page.locator("#field-mask_url").press("ArrowDown")
    page.locator("#field-mask_url").press("Space")
    press(page, "Draw")
    page.wait_for_selector(".run.done img")
    drawn = np.asarray(
        Image.open(io.BytesIO(httpx.get(page.get_attribute(".run img", "src"), verify=False).content)).convert("RGB")
    )
    assert tuple(drawn[2, 2]) == (30, 60, 210)  # outside the mask the picture is kept to the byte
    assert (drawn != np.asarray(picture)).any()


GIVE = """async ([kind, selector, name]) => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 32, height: 32 });
  const blob = await new Promise((resolve) => canvas.toBlob(resolve));
  const data = new DataTransfer();
  data.items.add(new File([blob], name, { type: "image/png" }));
  const [Kind, part] = kind === "paste" ? [ClipboardEvent, "clipboardData"] : [DragEvent, "dataTransfer"];
  document.querySelector(selector).dispatchEvent(new Kind(kind, { [part]: data, bubbles: true, cancelable: true }));
}"""


def test_pictures_and_masks_are_pasted_and_dropped_where_they_belong(server: Server, open_page: Any) -> None:
    page = open_page(at(server.url, "fal-ai/flux-pro/v1/fill"), server.url)
    page.wait_for_selector("#field-image_url")
    page.evaluate(GIVE, ["paste", "body", "pasted.png"])
    page.wait_for_selector('[data-field="image_url"] .drop img')
    page.locator("#field-mask_url[role=application]").focus()
    page.evaluate(GIVE, ["paste", "#field-mask_url", "mine.png"])
    page.wait_for_selector('[data-field="mask_url"] .drop img')
    press(page, "Paint it instead")
    page.wait_for_selector("#field-mask_url[role=application]")
    page.evaluate(GIVE, ["drop", '[data-field="mask_url"] .brush', "dropped.png"])
    page.wait_for_selector('[data-field="mask_url"] .drop img')
    page.evaluate(GIVE, ["drop", '[data-field="image_url"] .drop', "other.png"])
    page.wait_for_selector('[data-field="mask_url"] .drop img')


def test_asks_for_the_key_below_a_path_and_calls_by_fals_proxy(chromium: Any, open_page: Any, tmp_path: Path) -> None:
    with contextlib.closing(Server(tmp_path, ("--api-key", "id:secret")).start()) as server:
        server.wait_ready()
        with below("/pictures", server.port) as url:
            page = open_page(at(url, prompt="a red circle"), url.removesuffix("/pictures"))
            page.fill("#key", "id:wrong")
            press(page, "Use it")
            page.get_by_text("No user found").wait_for()
            page.fill("#key", "id:secret")
            page.get_by_label("Send through /api/fal/proxy").check()
            press(page, "Use it")
            sent: list[str] = []
            page.on("request", lambda call: sent.append(call.url))
            page.wait_for_selector("#field-prompt")
            press(page, "Draw")
            page.wait_for_selector(".run.done img")
            assert f"{url}/api/fal/proxy" in sent
            assert page.evaluate("document.querySelector('.run img').naturalWidth") == 256
            assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("device", [{}, PHONE], ids=["desk", "phone"])
def test_nothing_serious_stands_in_the_way_of_anybody(
    server: Server, open_page: Any, colours: str, device: dict[str, Any]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(at(server.url, "fal-ai/flux-lora"), server.url, color_scheme=colours, **device)
    page.wait_for_selector("#field-prompt")
    page.get_by_text("Advanced").click()
    press(page, "Draw")
    page.wait_for_selector(".field.wrong")
    found = axe.Axe().run(page).response["violations"]
    serious = [(each["id"], [node["target"] for node in each["nodes"]]) for each in found if each["impact"] != "minor"]
    assert serious == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
