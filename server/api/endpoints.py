"""The table of fal endpoints: id -> input schema and the checkpoints that may answer for it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from models.registry import Variant
from pipelines.protocol.params import DEPTH_ESTIMATOR
from server.api.paths import app_root, endpoint_id
from server.api.schemas import (
    control,
    fill,
    flux2,
    flux3,
    general,
    image_to_image,
    kontext,
    redux,
    sdxl,
    text_to_image,
    ultra,
)
from server.api.schemas.base import Input
from server.api.unserved import UNSERVED, Unserved
from server.http.errors import PlainError

_DEV: tuple[Variant, ...] = ("dev", "srpo", "krea", "schnell")
_KREA: tuple[Variant, ...] = ("krea", "dev", "srpo", "schnell")
_SRPO: tuple[Variant, ...] = ("srpo", "dev", "krea", "schnell")
_SCHNELL: tuple[Variant, ...] = ("schnell", "dev", "srpo", "krea")
_FILL: tuple[Variant, ...] = ("fill",)
_CANNY: tuple[Variant, ...] = ("canny",)
_DEPTH: tuple[Variant, ...] = ("depth",)
_KONTEXT: tuple[Variant, ...] = ("kontext",)
_KONTEXT_TEXT: tuple[Variant, ...] = (*_DEV, "kontext")

Category = Literal["text-to-image", "image-to-image", "inpainting", "control", "image-editing"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row.

    Args:
        id: full endpoint id as fal spells it.
        schema: what its input must be.
        variants: checkpoints that may serve it, best first; a substitute is named in `/v1/models`. All of them can
            do what the endpoint asks for: nothing else ever answers.
        summary: one line for the catalogue.
        category: fal's.
        beside: a checkpoint that every request needs besides, unless the one that draws brings it along.
        alias_of: the endpoint that the operator lets answer under this id.
    """

    id: str
    schema: type[Input]
    variants: tuple[Variant, ...]
    summary: str
    category: Category = "text-to-image"
    beside: Variant | None = None
    alias_of: str | None = None

    @property
    def usual_steps(self) -> int | None:
        """Steps of a request that says nothing about them; None where they are no field of it."""
        field = self.schema.model_fields.get("num_inference_steps")
        return None if field is None else int(field.default)


def _reworked(id_: str, schema: type[Input], variants: tuple[Variant, ...], name: str) -> Endpoint:
    return Endpoint(id_, schema, variants, f"{name}: rework a picture", "image-to-image")


def _varied(id_: str, schema: type[Input], variants: tuple[Variant, ...], name: str) -> Endpoint:
    return Endpoint(id_, schema, variants, f"{name}: variations of a picture", "image-to-image", "redux")


def _deep(id_: str, schema: type[Input], summary: str) -> Endpoint:
    """Without a field by which a caller may send the depth of a picture instead of the picture."""
    return Endpoint(id_, schema, _DEPTH, summary, "control", DEPTH_ESTIMATOR)


def _edited(id_: str, schema: type[Input], summary: str) -> Endpoint:
    return Endpoint(id_, schema, _KONTEXT, summary, "image-editing")


def _open(app: str) -> tuple[Endpoint, ...]:
    """The endpoints of the open checkpoints, which fal has under two names."""
    return (
        Endpoint(f"{app}/dev", text_to_image.FluxDev, _DEV, "FLUX.1 [dev]"),
        _reworked(f"{app}/dev/image-to-image", image_to_image.FluxDevImageToImage, _DEV, "FLUX.1 [dev]"),
        _varied(f"{app}/dev/redux", redux.FluxDevRedux, _DEV, "FLUX.1 [dev]"),
        Endpoint(f"{app}/schnell", text_to_image.FluxSchnell, _SCHNELL, "FLUX.1 [schnell]: 1 to 12 steps"),
        _varied(f"{app}/schnell/redux", redux.FluxSchnellRedux, _SCHNELL, "FLUX.1 [schnell]"),
        Endpoint(f"{app}/krea", text_to_image.FluxKrea, _KREA, "FLUX.1 Krea [dev]"),
        _reworked(f"{app}/krea/image-to-image", image_to_image.FluxKreaImageToImage, _KREA, "FLUX.1 Krea [dev]"),
        _varied(f"{app}/krea/redux", redux.FluxKreaRedux, _KREA, "FLUX.1 Krea [dev]"),
        Endpoint(f"{app}/srpo", text_to_image.FluxKrea, _SRPO, "FLUX.1 SRPO [dev]"),
        _reworked(f"{app}/srpo/image-to-image", image_to_image.FluxKreaImageToImage, _SRPO, "FLUX.1 SRPO [dev]"),
    )


_PRO = (
    Endpoint("fal-ai/flux-pro", text_to_image.FluxPro, _DEV, "FLUX.1 [pro], answered by open weights"),
    Endpoint("fal-ai/flux-pro/new", text_to_image.FluxPro, _DEV, "FLUX.1 [pro], newer, answered by open weights"),
    Endpoint("fal-ai/flux-pro/v1.1", text_to_image.FluxProPlus, _DEV, "FLUX1.1 [pro], answered by open weights"),
    Endpoint("fal-ai/flux-pro/v1.1-ultra", ultra.FluxProUltra, _DEV, "FLUX1.1 [pro] ultra: about 4 megapixels"),
    _varied("fal-ai/flux-pro/v1/redux", redux.FluxProRedux, _DEV, "FLUX.1 [pro]"),
    _varied("fal-ai/flux-pro/v1.1/redux", redux.FluxProRedux, _DEV, "FLUX1.1 [pro]"),
    _varied("fal-ai/flux-pro/v1.1-ultra/redux", ultra.FluxProUltraRedux, _DEV, "FLUX1.1 [pro] ultra"),
    Endpoint("fal-ai/flux-pro/v1/fill", fill.FluxProFill, _FILL, "Repaint what a mask covers", "inpainting"),
    Endpoint("fal-ai/flux-pro/v1/erase", fill.FluxProErase, _FILL, "Remove what a mask covers", "inpainting"),
    Endpoint("fal-ai/flux-pro/v1/canny", control.FluxProCanny, _CANNY, "Follow the edges of a picture", "control"),
    _deep("fal-ai/flux-pro/v1/depth", control.FluxProDepth, "Follow the depth of a picture"),
    _edited("fal-ai/flux-pro/kontext", kontext.KontextProEdit, "Edit a picture by instruction"),
    _edited("fal-ai/flux-pro/kontext/max", kontext.KontextProEdit, "Edit a picture by instruction"),
    _edited("fal-ai/flux-pro/kontext/multi", kontext.KontextProMulti, "Compose from several pictures"),
    _edited("fal-ai/flux-pro/kontext/max/multi", kontext.KontextProMulti, "Compose from several pictures"),
    Endpoint(
        "fal-ai/flux-pro/kontext/text-to-image", kontext.KontextText, _KONTEXT_TEXT, "Kontext [pro] without a picture"
    ),
    Endpoint(
        "fal-ai/flux-pro/kontext/max/text-to-image",
        kontext.KontextText,
        _KONTEXT_TEXT,
        "Kontext [max] without a picture",
    ),
)


def _adapted(app: str, variants: tuple[Variant, ...], name: str) -> tuple[Endpoint, ...]:
    """The endpoints of a checkpoint with LoRAs."""
    return (
        Endpoint(app, text_to_image.FluxLora, variants, f"{name} with LoRAs"),
        _reworked(f"{app}/image-to-image", image_to_image.FluxLoraImageToImage, variants, f"{name} with LoRAs"),
        Endpoint(
            f"{app}/inpainting",
            image_to_image.FluxLoraInpainting,
            variants,
            f"{name} with LoRAs: repaint what a mask covers",
            "inpainting",
        ),
    )


_LORA = (
    *_adapted("fal-ai/flux-lora", _DEV, "FLUX.1 [dev]"),
    *_adapted("fal-ai/flux-krea-lora", _KREA, "FLUX.1 Krea [dev]"),
    Endpoint("fal-ai/flux-lora-canny", control.FluxLoraCanny, _CANNY, "Follow edges, with LoRAs", "control"),
    _deep("fal-ai/flux-lora-depth", control.FluxLoraDepth, "Follow depth, with LoRAs"),
    Endpoint("fal-ai/flux-lora-fill", fill.FluxLoraFill, _FILL, "Repaint with LoRAs", "inpainting"),
    Endpoint("fal-ai/flux-control-lora-canny", control.FluxControlLoraCanny, _CANNY, "Follow edges", "control"),
    Endpoint(
        "fal-ai/flux-control-lora-canny/image-to-image",
        control.FluxControlLoraCannyImageToImage,
        _CANNY,
        "Rework a picture along edges",
        "control",
    ),
    Endpoint("fal-ai/flux-control-lora-depth", control.FluxControlLoraDepth, _DEPTH, "Follow depth", "control"),
    _deep(
        "fal-ai/flux-control-lora-depth/image-to-image",
        control.FluxControlLoraDepthImageToImage,
        "Rework a picture along depth",
    ),
)

_GENERAL = (
    Endpoint("fal-ai/flux-general", general.FluxGeneral, _DEV, "FLUX.1 [dev] with LoRAs and ControlNets"),
    _reworked("fal-ai/flux-general/image-to-image", general.FluxGeneralImageToImage, _DEV, "The same"),
    Endpoint(
        "fal-ai/flux-general/inpainting",
        general.FluxGeneralInpainting,
        _DEV,
        "The same: repaint what a mask covers",
        "inpainting",
    ),
    Endpoint(
        "fal-ai/flux-general/differential-diffusion",
        general.FluxGeneralDifferentialDiffusion,
        _DEV,
        "The same: change a picture as a map says",
        "image-to-image",
    ),
    Endpoint(
        "fal-ai/flux-differential-diffusion",
        image_to_image.FluxDifferentialDiffusion,
        _DEV,
        "FLUX.1 [dev]: change a picture as a map says",
        "image-to-image",
    ),
)

_KONTEXT_ROWS = (
    _edited("fal-ai/flux-kontext/dev", kontext.KontextDev, "FLUX.1 Kontext [dev]: edit a picture by instruction"),
    _edited("fal-ai/flux-kontext-lora", kontext.KontextLora, "Kontext [dev] with LoRAs"),
    Endpoint(
        "fal-ai/flux-kontext-lora/text-to-image",
        kontext.KontextLoraText,
        _KONTEXT_TEXT,
        "Kontext [dev] with LoRAs, without a picture",
    ),
    Endpoint(
        "fal-ai/flux-kontext-lora/inpaint",
        kontext.KontextLoraInpaint,
        _KONTEXT,
        "Kontext [dev] with LoRAs: repaint after another picture",
        "inpainting",
    ),
    Endpoint(
        "fal-ai/flux-kontext-lora/image-to-image",
        kontext.KontextLoraImageToImage,
        _KONTEXT,
        "Kontext [dev] with LoRAs: rework a picture",
        "image-to-image",
    ),
)


def _klein(size: str, best: Variant, others: tuple[Variant, ...] = ()) -> tuple[Endpoint, ...]:
    """FLUX.2 [klein] of one size: both kinds, each drawing and editing. Args: others: what may stand in for `best`."""
    app, name = f"fal-ai/flux-2/klein/{size}", f"FLUX.2 [klein] {size.upper()}"
    bases: dict[Variant, Variant] = {"klein-4b": "klein-base-4b", "klein-9b": "klein-base-9b"}
    distilled, base = (best, *others), tuple(bases[variant] for variant in (best, *others))
    return (
        Endpoint(app, flux2.KleinDistilled, distilled, f"{name}: 4 steps"),
        Endpoint(f"{app}/edit", flux2.KleinDistilledEdit, distilled, f"{name}: edit pictures", "image-editing"),
        Endpoint(f"{app}/base", flux2.KleinBase, base, f"{name} before distillation: real guidance"),
        Endpoint(f"{app}/base/edit", flux2.KleinBaseEdit, base, f"{name} before distillation: edit", "image-editing"),
        Endpoint(f"{app}/lora", flux2.KleinDistilledLora, distilled, f"{name} with LoRAs"),
        Endpoint(f"{app}/edit/lora", flux2.KleinDistilledEditLora, distilled, f"{name}, LoRAs: edit", "image-editing"),
        Endpoint(f"{app}/base/lora", flux2.KleinBaseLora, base, f"{name} before distillation, with LoRAs"),
        Endpoint(f"{app}/base/edit/lora", flux2.KleinBaseEditLora, base, f"{name} base, LoRAs: edit", "image-editing"),
    )


_FLUX_2: tuple[Variant, ...] = ("flux2-dev",)
_FLUX_2_TURBO: tuple[Variant, ...] = ("flux2-turbo",)
_DEV_2 = (
    Endpoint("fal-ai/flux-2", flux2.Flux2, _FLUX_2, "FLUX.2 [dev]"),
    Endpoint("fal-ai/flux-2/edit", flux2.Flux2Edit, _FLUX_2, "FLUX.2 [dev]: edit pictures", "image-editing"),
    Endpoint("fal-ai/flux-2/lora", flux2.Flux2Lora, _FLUX_2, "FLUX.2 [dev] with LoRAs"),
    Endpoint("fal-ai/flux-2/lora/edit", flux2.Flux2LoraEdit, _FLUX_2, "FLUX.2 [dev], LoRAs: edit", "image-editing"),
    *(
        row
        for kind in ("turbo", "flash")
        for row in (
            Endpoint(f"fal-ai/flux-2/{kind}", flux2.Flux2Turbo, _FLUX_2_TURBO, "FLUX.2 [dev] distilled to 8 steps"),
            Endpoint(
                f"fal-ai/flux-2/{kind}/edit",
                flux2.Flux2TurboEdit,
                _FLUX_2_TURBO,
                "FLUX.2 [dev] distilled to 8 steps: edit pictures",
                "image-editing",
            ),
        )
    ),
)
_KLEIN = (*_klein("4b", "klein-4b", ("klein-9b",)), *_klein("9b", "klein-9b", ("klein-4b",)))

_FLUX_3: tuple[Variant, ...] = ("flux3-klein",)
_FLUX_3_BASE: tuple[Variant, ...] = ("flux3-klein-base",)
_FLUX_3_APP = "blackforestlabs/flux-3/klein"
_KLEIN_3 = (
    Endpoint(f"{_FLUX_3_APP}/text-to-image", flux3.Flux3Klein, _FLUX_3, "FLUX.3 [klein]"),
    Endpoint(f"{_FLUX_3_APP}/edit", flux3.Flux3KleinEdit, _FLUX_3, "FLUX.3 [klein]: edit pictures", "image-editing"),
    Endpoint(
        f"{_FLUX_3_APP}/base/text-to-image", flux3.Flux3KleinBase, _FLUX_3_BASE, "FLUX.3 [klein] before distillation"
    ),
    Endpoint(
        f"{_FLUX_3_APP}/base/edit",
        flux3.Flux3KleinBaseEdit,
        _FLUX_3_BASE,
        "FLUX.3 [klein] before distillation: edit pictures",
        "image-editing",
    ),
)

_LIGHTNING: tuple[Variant, ...] = ("lightning",)
_PLAYGROUND: tuple[Variant, ...] = ("playground", "sdxl")


def _three(
    app: str, schemas: tuple[type[Input], type[Input], type[Input]], variants: tuple[Variant, ...], name: str
) -> tuple[Endpoint, ...]:
    """From text, from a picture, behind a mask."""
    drawn, reworked, masked = schemas
    return (
        Endpoint(app, drawn, variants, name),
        _reworked(f"{app}/image-to-image", reworked, variants, name),
        Endpoint(f"{app}/inpainting", masked, variants, f"{name}: repaint what a mask covers", "inpainting"),
    )


_SDXL = (
    *_three(
        "fal-ai/fast-lightning-sdxl",
        (sdxl.Lightning, sdxl.LightningImageToImage, sdxl.LightningInpainting),
        _LIGHTNING,
        "SDXL-Lightning in 1, 2, 4 or 8 steps",
    ),
    *_three(
        "fal-ai/playground-v25",
        (sdxl.Playground, sdxl.PlaygroundImageToImage, sdxl.PlaygroundInpainting),
        _PLAYGROUND,
        "Playground v2.5",
    ),
)

_ROWS = (
    *_PRO,
    *_open("fal-ai/flux"),
    *_open("fal-ai/flux-1"),
    *_LORA,
    *_GENERAL,
    *_KONTEXT_ROWS,
    *_DEV_2,
    *_KLEIN,
    *_KLEIN_3,
    *_SDXL,
)

ENDPOINTS: dict[str, Endpoint] = {row.id: row for row in _ROWS}
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._-]{0,99}){1,7}")


class AliasError(ValueError):
    """An alias that cannot be; the message is one sentence for the operator."""


def add_aliases(aliases: Iterable[str]) -> None:
    """Let endpoints answer under more ids, each given as ID=ID: once, at the start of the process.

    Raises: AliasError for an id that is none or is taken, and for a target that is not served.
    """
    for alias in aliases:
        name, given, target = alias.partition("=")
        if not given or not _ALIAS.fullmatch(name) or "requests" in name.split("/"):
            raise AliasError(f"{alias}: give ID=ID, such as fal-ai/flux-2-pro=fal-ai/flux-2")
        if name in ENDPOINTS:
            raise AliasError(f"{name} is served already")
        if target not in ENDPOINTS:
            raise AliasError(f"{target or alias} is not an endpoint of this server; GET /v1/models lists them")
        row = ENDPOINTS[target]
        summary = f"{row.id} under another name: {row.summary}"
        ENDPOINTS[name] = replace(row, id=name, summary=summary, alias_of=row.alias_of or row.id)


def drawing_with(variant: Variant) -> Endpoint | None:
    """Where such a checkpoint draws from text: its own endpoint, else one at which it stands in; None if it cannot."""
    rows = [row for row in _ROWS if row.category == "text-to-image" and variant in row.variants]
    # The ids of pro mean closed weights, whatever answers here.
    open_rows = [row for row in rows if not row.id.startswith("fal-ai/flux-pro")]
    return min(open_rows, key=lambda row: row.variants.index(variant), default=None)


def find(path: str) -> tuple[Endpoint, str]:
    """The endpoint of a run or submit path and the app's own sub-route below it (`""`, `"stream"`, ...).

    The longest registered id wins. Raises: PlainError 404 with a sentence, for an unknown app or path, and for an
    endpoint of fal's that is not served, with its reason.
    """
    name = endpoint_id(path)
    segments = name.split("/")
    for length in range(len(segments), 1, -1):
        known = "/".join(segments[:length])
        if (row := ENDPOINTS.get(known)) is not None:
            return row, "/".join(segments[length:])
        if known in UNSERVED:
            raise PlainError(404, Unserved(known, UNSERVED[known]).summary)
    root = app_root(name)
    if any(app_root(known) == root for known in (*ENDPOINTS, *UNSERVED)):
        raise path_not_found(name.removeprefix(root).strip("/"))
    raise PlainError(404, f"Application '{root[:200]}' not found")


def path_not_found(rest: str) -> PlainError:
    """An unknown route inside a known app, in the words of fal's app framework."""
    return PlainError(404, f"Path /{rest[:200]} not found")
