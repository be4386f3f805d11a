"""The trainer of sdxl-shapes: a few steps of every part, and two folders that stock and ours open alike."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.loading import load
from models.shapes.evaluate_siblings import open_pipeline
from models.shapes.flow import image_ids, pack
from models.shapes.sdxl import evaluate
from models.shapes.sdxl.export import export_sdxl
from models.shapes.sdxl.text import POOLED_WIDTH, SEQUENCE_WIDTH, SdxlText, new_text
from models.shapes.sdxl.train import BASE, text_from, unet_from
from models.shapes.sdxl.train_text import train_text
from models.shapes.sdxl.training import SdxlTraining
from models.shapes.sdxl.unet import SPREAD, AsFlow, lightning_scheduler, new_unet, playground_scheduler
from models.shapes.train_siblings import base_encoders, base_transformer
from pipelines.engine.engine import Engine
from pipelines.families.sdxl.runner import SdxlRunner
from tests.pipelines.driving import drain, make_params, pictures, submit

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning", "ignore:`torch_dtype` is deprecated:FutureWarning"
)


@pytest.fixture(scope="module")
def text() -> SdxlText:
    figures: list[dict[str, float]] = []
    trained = train_text(new_text(base_encoders(BASE)), 2, lambda done, seen: figures.append(seen), device=CPU, batch=4)
    assert figures[-1].keys() == {"loss", "pooled all right", "sequence all right"}
    return trained


@pytest.fixture(scope="module")
def folder(text: SdxlText, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps of both parts, written as pipelines."""
    torch.manual_seed(0)
    model = AsFlow(new_unet())
    taught = SdxlTraining(text, model, base_transformer(BASE), base_encoders(BASE), device=CPU, tokens=128)
    assert np.isfinite([float(taught.step(done)) for done in (0.1, 0.5, 0.5)]).all()
    with torch.no_grad():  # so that a few steps draw something
        model.unet.conv_out.weight.normal_(0, 0.05)
    made = tmp_path_factory.mktemp("shapes") / "sdxl-shapes"
    assert export_sdxl(made, model.stock(), text, BASE) < 20_000_000
    return made


@pytest.mark.parametrize(("name", "variant", "guidance"), [("", "playground", 3.0), ("-lightning", "lightning", 1.0)])
def test_the_stock_pipeline_and_ours_draw_the_same(folder: Path, name: str, variant: str, guidance: float) -> None:
    made = folder.with_name(folder.name + name)
    spec = resolve(str(made))
    assert (spec.family, spec.variant) == ("sdxl", variant)
    runner = SdxlRunner(load(spec, CpuAccelerator()), CpuAccelerator())
    assert runner.has_safety_checker
    engine = Engine(lambda name: runner, CpuAccelerator())
    submit(engine, "a", make_params(width=192, height=128, guidance_scale=guidance))
    (ours,) = pictures(drain(engine), "a")
    theirs = open_pipeline(StableDiffusionXLPipeline, made)(
        prompt="a red circle",
        width=192,
        height=128,
        num_inference_steps=4,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    apart = np.abs(ours.astype(int) - np.asarray(theirs).astype(int))
    assert apart.max() <= 1, "one in ten thousand rounds otherwise with guidance"
    assert apart.mean() < 1e-3
    assert np.std(ours) > 5


def test_a_written_folder_is_trained_on_as_it_was(folder: Path, text: SdxlText) -> None:
    again = unet_from(folder).stock().state_dict()
    written = UNet2DConditionModel.from_pretrained(folder / "unet").float().state_dict()
    assert all(torch.allclose(again[name], value, rtol=1e-5) for name, value in written.items())
    read = text_from(BASE, folder, 0, CPU, lambda done, seen: None, folder)
    assert torch.equal(read.encode(["a red star"])[1], text.encode(["a red star"])[1])


def test_a_folder_is_scored_by_scenes(folder: Path) -> None:
    pipeline = open_pipeline(StableDiffusionXLPipeline, folder)
    assert {"ground", "colour"} <= evaluate.drawing_rates(pipeline, 1, 128, 1, 3.0).keys()


@pytest.mark.parametrize("level", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("make", [playground_scheduler, lightning_scheduler])
def test_training_and_both_schedules_agree_on_what_the_unet_is_told_and_tells(make: object, level: float) -> None:
    """One step of a scheduler from the noise of a flow's level to none gives what the flow's velocity leads to."""
    torch.manual_seed(1)
    told: list[torch.Tensor] = []
    answer = torch.randn(1, 16, 4, 4)

    class Spy(torch.nn.Module):
        def forward(self, sample: torch.Tensor, time: torch.Tensor, **others: object) -> tuple[torch.Tensor]:
            told.extend((sample, time))
            return (answer,)

    flow = AsFlow(new_unet()).eval()
    flow.unet = Spy()  # type: ignore[assignment]
    noisy = torch.randn(1, 16, 4, 4)
    velocity = flow(
        pack(noisy), torch.tensor([level]), torch.zeros(1, 96), torch.zeros(1, 77, 224), image_ids(128, 128)
    )[0]
    clean = pack(noisy) - level * velocity

    scheduler = make()  # type: ignore[operator]
    sigma = level / (1 - level)
    scheduler.set_timesteps(2)
    scheduler.sigmas = torch.tensor([sigma, 0.01, 0.0])
    scheduler.timesteps = torch.tensor([0.25 * math.log(sigma), 0.0])
    scheduler.set_begin_index(0)
    at = noisy / (1 - level)
    assert torch.allclose(scheduler.scale_model_input(at, scheduler.timesteps[0]), told[0], atol=1e-5)
    stepped = scheduler.step(answer, scheduler.timesteps[0], at)
    outputs = getattr(scheduler, "model_outputs", None)
    expected = outputs[-1] if outputs else stepped.pred_original_sample
    assert torch.allclose(pack(expected), clean, atol=1e-4)


def test_the_folder_reads_texts_as_loud_as_they_are() -> None:
    torch.manual_seed(3)
    flow = AsFlow(new_unet()).eval()
    flow.unet.conv_out.weight.data.normal_()
    shown = torch.randn(2, 16, 4, 4)
    pooled, sequence = 4 * torch.randn(2, POOLED_WIDTH), 4 * torch.randn(2, 5, SEQUENCE_WIDTH)
    sizes = torch.tensor([[128, 128, 0, 0, 128, 128]]).expand(2, -1)
    trained, stock = (
        unet(
            shown,
            torch.tensor([7.0, 500.0]),
            encoder_hidden_states=sequence / scale,
            added_cond_kwargs={"text_embeds": pooled / scale, "time_ids": sizes},
        ).sample
        for unet, scale in ((flow.unet, SPREAD), (flow.stock(), 1.0))
    )
    assert torch.allclose(trained, stock, atol=1e-4)


def test_the_time_is_told_as_both_schedules_tell_it() -> None:
    flow = AsFlow(new_unet())
    scheduler = lightning_scheduler()
    scheduler.set_timesteps(4)
    noise = scheduler.sigmas[:4].log()
    assert torch.allclose(flow.eval()._times(noise), scheduler.timesteps, atol=0.05)
    torch.manual_seed(0)
    told = flow.train()._times(noise.repeat(50))
    as_edm = told == (0.25 * noise).repeat(50)
    assert 60 < int(as_edm.sum()) < 140, "each half of the rows"
