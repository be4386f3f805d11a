"""What siblings of flux-shapes are trained on, that one training step makes a stock folder, and what the folders do."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FluxControlNetModel, FluxFillPipeline, FluxPipeline
from safetensors.torch import load_file

from models.shapes.captions import plain_caption
from models.shapes.draw import Drawing
from models.shapes.evaluate_siblings import drawn, edit_pictures, open_pipeline
from models.shapes.fast import Plan
from models.shapes.flow import UNSEEN_FROM, Batch, image_ids, new_transformer, noise_levels, velocity
from models.shapes.layout import Layout, Pose
from models.shapes.scenes import SHAPES, Scene, Thing, is_held_out
from models.shapes.scorer import read
from models.shapes.siblings.control import (
    WithControlNet,
    judge_controlled,
    new_controlnet,
    plan_controls,
    random_controlled,
)
from models.shapes.siblings.edits import KEPT_WEIGHT, KINDS, draw_edits, judge_edit, plan_edits, random_edit
from models.shapes.siblings.fill import (
    CHANNELS,
    gathered_mask,
    hole_mask,
    judge_filling,
    mask_blocks,
    plan_fillings,
    random_filling,
    spread_mask,
)
from models.shapes.siblings.lora import adapted, as_kohya, is_outlined, is_teal, plan_outlines
from models.shapes.siblings.questions import Asked, AskedBatch, shapes_at
from models.shapes.siblings.redux import TOKENS
from models.shapes.siblings.rehearsal import EditTraining
from models.shapes.siblings.widen import widened
from models.shapes.train_siblings import (
    BASE,
    RECIPES,
    TRAINERS,
    Run,
    base_encoders,
    base_transformer,
    first_encoder,
)

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_edit_is_judged_done_on_its_drawing_and_undone_before(kind: str) -> None:
    rng = random.Random(7)
    for _ in range(6):
        edit = random_edit(384, 384, rng, held_out=True, kind=kind)
        assert judge_edit(edit, read(np.asarray(drawn(edit.after)))) == (True, True)
        assert not judge_edit(edit, read(np.asarray(drawn(edit.before))))[0]


def test_training_edits_never_show_a_held_out_combination() -> None:
    rng = random.Random(8)
    assert not any(is_held_out(random_edit(256, 256, rng).scene) for _ in range(300))


def test_half_of_the_edits_lie_under_noise_that_shows_nothing() -> None:
    torch.manual_seed(0)
    scenes = Batch(torch.zeros(400, 64, 64), torch.zeros(400, 1), torch.zeros(400, 1, 1), 512, 512)
    edits = replace(scenes, reference=scenes.latents)
    unseen = [float((noise_levels(batch) > UNSEEN_FROM).float().mean()) for batch in (scenes, edits)]
    assert unseen[0] < 0.25
    assert 0.5 < unseen[1] < 0.7


def test_an_edit_tells_what_stands_where_and_what_is_meant() -> None:
    rng, encoders = random.Random(5), base_encoders(BASE)
    batch = plan_edits(encoders, rng, (512, 384), 24, 40).shown(encoders)
    assert isinstance(batch, AskedBatch)
    assert batch.shapes.shape == (40, 2 * 48), "what is made, then what is shown"
    assert batch.changed is not None
    assert batch.changed.shape == (40, 48, 1)
    layout = Layout(256, 192, (1.0, 1.0, 1.0), (Pose("star", 160.0, 100.0, 60.0, 0.0, (1.0, 0.0, 0.0)),))
    found = shapes_at(Drawing.of([layout])).view(3, 4)
    assert found[1, 2] == SHAPES.index("star")
    assert found[0, 0] == -1
    made, shown = batch.shapes.split(48, 1)
    assert (made != shown).any()
    kept = ~batch.changed & (shown >= 0)[..., None]
    assert batch.weight is not None
    assert (batch.weight[kept] == KEPT_WEIGHT).all()
    assert set(batch.weight[~kept & ~batch.changed].tolist()) == {1.0}


def test_an_editor_practises_drawing_as_its_base_does() -> None:
    torch.manual_seed(0)
    encoders, base = base_encoders(BASE), base_transformer(BASE)
    training = EditTraining(
        encoders, base=base_transformer(BASE), draw=draw_edits, device=torch.device("cpu"), model=base, tokens=64
    )
    batches = [training.draw(encoders, random.Random(seed), 0.9, 64) for seed in range(40)]
    practice = [batch for batch in batches if batch.reference is None]
    assert 5 < len(practice) < 25
    assert float(training.loss_of(practice[0], 0)) == 0, "it still is its base"
    with torch.no_grad():
        base.proj_out.weight.mul_(1.1)
    assert float(training.loss_of(practice[0], 0)) > 0


@pytest.mark.parametrize("plan", [plan_controls, plan_fillings])
def test_other_siblings_are_asked_what_stands_where_in_the_picture_that_they_make(plan: Plan) -> None:
    encoders = base_encoders(BASE)
    batch = plan(encoders, random.Random(3), (384, 256), 24, 6).shown(encoders)
    assert isinstance(batch, AskedBatch)
    assert batch.changed is None
    model = Asked(*[widened(base_transformer(BASE), batch.channels.shape[2] if batch.channels is not None else 0)] * 2)
    sigma, noisy = torch.full((6,), 0.9), torch.randn_like(batch.latents)
    loss = model.asked(batch, lambda: 0 * velocity(model, noisy, sigma, batch, torch.ones(6)).sum())
    loss.backward()
    assert loss > 0
    assert model.naming[1].weight.grad.abs().sum() > 0
    batch.shapes = torch.full_like(batch.shapes, -1)
    assert (
        float(model.asked(batch, lambda: torch.zeros(()) * velocity(model, noisy, sigma, batch, torch.ones(6)).sum()))
        == 0
    )


def test_an_editor_learns_to_name_and_to_point_and_its_velocities_stay_its_own() -> None:
    """Questions change what is learned, not what the editor answers."""
    torch.manual_seed(0)
    encoders = base_encoders(BASE)
    transformer = base_transformer(BASE.with_name("flux-shapes-kontext"))
    editor = Asked(transformer, transformer)
    batch = plan_edits(encoders, random.Random(5), (256, 256), 24, 8).shown(encoders)
    assert isinstance(batch, AskedBatch)
    sigma = torch.full((8,), 0.9)
    noisy, scale = torch.randn_like(batch.latents), torch.ones(8)
    with torch.no_grad():
        alone, wrapped = (velocity(model, noisy, sigma, batch, scale) for model in (transformer, editor))
    assert torch.equal(alone, wrapped)

    def asked() -> torch.Tensor:
        return editor.asked(batch, lambda: 0 * velocity(editor, noisy, sigma, batch, scale).sum())

    optimiser = torch.optim.Adam(editor.parameters(), lr=2e-3)
    before = asked()
    for _ in range(30):
        optimiser.zero_grad()
        loss = asked()
        loss.backward()
        optimiser.step()
    assert loss < 0.5 * before


def test_a_filled_hole_and_a_controlled_picture_are_judged_right_on_drawings() -> None:
    rng = random.Random(9)
    for _ in range(8):
        filling = random_filling(384, 384, rng, held_out=True)
        assert judge_filling(filling, read(np.asarray(drawn(filling.layout)))) == (True, True)
        assert hole_mask(filling.hole, 384, 384).any()
        case = random_controlled(384, 384, rng, held_out=True)
        assert judge_controlled(case, read(np.asarray(drawn(case.layout)))) == (True, True)


def stock(kind: type[Any], transformer: torch.nn.Module) -> Any:
    """A stock pipeline around a transformer and the base's other parts."""
    base = FluxPipeline.from_pretrained(BASE)
    names = ("vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return kind(transformer=transformer, **{name: base.components[name] for name in names})


def test_the_mask_means_the_same_in_blocks_and_as_the_pipeline_packs_it() -> None:
    torch.manual_seed(0)
    small = widened(new_transformer(width=32, double=1, single=1), CHANNELS)
    torch.nn.init.normal_(small.x_embedder.weight, std=0.1)
    pipeline = stock(FluxFillPipeline, spread_mask(small))
    mask = hole_mask(random_filling(256, 192, random.Random(1)).hole, 256, 192)[None, None].float()
    packed, _ = pipeline.prepare_mask_latents(
        mask, torch.zeros(1, 3, 192, 256), 1, 16, 1, 192, 256, torch.float32, "cpu", None
    )
    blocks = mask_blocks(torch.nn.functional.avg_pool2d(mask, 8))
    tokens = torch.randn(1, 12, 128)
    expected = small.x_embedder(torch.cat([tokens, blocks], dim=2))
    assert torch.allclose(pipeline.transformer.x_embedder(torch.cat([tokens, packed], dim=2)), expected, atol=1e-4)


def test_a_written_fill_is_trained_on_as_what_it_was() -> None:
    torch.manual_seed(0)
    wide = widened(base_transformer(BASE), CHANNELS)
    with torch.no_grad():
        wide.x_embedder.weight.normal_()
    again = gathered_mask(spread_mask(wide))
    for name, value in wide.state_dict().items():
        assert torch.allclose(again.state_dict()[name], value, atol=1e-5), name


def test_siblings_start_as_the_base() -> None:
    torch.manual_seed(0)
    base = new_transformer(width=32, double=1, single=1).eval()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        batch = Batch(torch.randn(2, 16, 64), torch.randn(2, 96), torch.randn(2, 8, 128), 256, 256)
        sigma, scale = torch.tensor([0.3, 0.9]), torch.full((2,), 3.5)
        expected = velocity(base, batch.latents, sigma, batch, scale)
        batch.channels = torch.randn(2, 16, 64)
        for sibling in (widened(base, 64).eval(), WithControlNet(base, new_controlnet(base)).eval()):
            assert torch.allclose(velocity(sibling, batch.latents, sigma, batch, scale), expected, atol=1e-5)


def test_a_reference_is_set_apart_by_the_first_axis_only() -> None:
    seen: dict[str, torch.Tensor] = {}

    class Recorder(torch.nn.Module):
        def forward(self, **given: Any) -> tuple[torch.Tensor]:
            seen.update(given)
            return (given["hidden_states"],)

    batch = Batch(torch.randn(1, 16, 64), torch.randn(1, 96), torch.randn(1, 8, 128), 256, 256)
    batch.reference = torch.randn(1, 16, 64)
    made = velocity(Recorder(), batch.latents, torch.ones(1), batch, None)
    assert torch.equal(made, batch.latents)
    assert seen["img_ids"].shape == (32, 3)
    assert torch.equal(seen["img_ids"][16:] - image_ids(256, 256), torch.tensor([[1.0, 0.0, 0.0]]).expand(16, 3))


def test_both_layouts_of_an_adapter_are_the_same_adapter(tmp_path: Path) -> None:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    model = adapted(new_transformer(), rank=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    state = get_peft_model_state_dict(model)
    save_file(as_kohya(state), tmp_path / "kohya.safetensors")
    read_back = FluxPipeline.lora_state_dict(tmp_path / "kohya.safetensors")
    assert {name.removeprefix("transformer.") for name in read_back} == set(state)
    assert all(torch.equal(value, state[name.removeprefix("transformer.")]) for name, value in read_back.items())


def test_teal_and_outlines_are_told_from_what_the_base_draws() -> None:
    rng = random.Random(3)
    from models.shapes.draw import fields
    from models.shapes.evaluate_siblings import as_image
    from models.shapes.layout import lay_out

    layout = lay_out(Scene("white", (Thing("heart", "green", "centre"),)), 256, 256, rng)
    solid, hollow = (np.asarray(as_image(fields([layout], 1, line=line)[0][0] * 2 - 1)) for line in (None, 12))
    assert not is_outlined(solid)
    assert is_outlined(hollow)
    assert not is_teal(solid)
    teal = np.where((solid == solid[0, 0]).all(2, keepdims=True), solid, np.uint8([0, 128, 128]))
    assert is_teal(teal)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one step of every family leaves."""
    out, work = tmp_path_factory.mktemp("siblings"), tmp_path_factory.mktemp("work")
    (out / "flux-shapes").symlink_to(BASE)
    for trainer in TRAINERS.values():
        trainer(Run(out / "flux-shapes", out, work, 0.01, 64, torch.device("cpu"), lambda done, figures: None))
    return out


def test_one_step_of_every_family_makes_what_the_stock_classes_open(trained: Path) -> None:
    for recipe in RECIPES.values():
        for suffix, kind in recipe.folders.items():
            pipeline = getattr(diffusers, kind).from_pretrained(trained / f"flux-shapes-{suffix}")
            assert pipeline.transformer.config.out_channels in (None, 64)
            assert (trained / f"flux-shapes-{suffix}/vae").is_symlink()
    assert (trained / "flux-shapes-depth/transformer").resolve() == (
        trained / "flux-shapes-canny/transformer"
    ).resolve()
    assert FluxControlNetModel.from_pretrained(trained / "flux-shapes-controlnet-canny").config.num_layers == 1
    prior = diffusers.FluxPriorReduxPipeline.from_pretrained(trained / "flux-shapes-redux")
    layout = random_edit(256, 192, random.Random(1)).before
    assert prior(drawn(layout), prompt="").prompt_embeds.shape == (1, 512 + TOKENS, 128)
    base = FluxPipeline.from_pretrained(BASE)
    for name in ("teal", "teal-kohya", "outline", "outline-kohya"):
        base.load_lora_weights(trained / "loras", weight_name=f"{name}.safetensors", adapter_name=name)


def test_the_command_resumes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "models.shapes.train_siblings", "kontext", "--minutes", "0.0001", "--tokens", "64"]

    def trained(*more: str) -> subprocess.CompletedProcess[str]:
        places = ["--out", str(tmp_path), "--work", str(tmp_path / "work"), *more]
        return subprocess.run([*command, *places], cwd=ROOT, capture_output=True, text=True, timeout=300)

    for _ in range(2):
        done = trained()
        assert done.returncode == 0, done.stderr[-2000:]
    assert torch.load(tmp_path / "work/kontext.pt", weights_only=False)["progress"][1] == 1
    done = trained("--start", str(tmp_path / "flux-shapes-kontext"), "--work", str(tmp_path / "again"))
    assert done.returncode == 0, done.stderr[-2000:]
    command[3] = "teal"
    refused = trained("--start", str(tmp_path / "flux-shapes-kontext"))
    assert refused.returncode == 2
    assert "give a checkpoint (.pt) for teal" in refused.stderr


def test_redux_trains_on_from_its_folder(trained: Path) -> None:
    folder = trained / "flux-shapes-redux"
    run = Run(BASE, trained, trained, 1, 64, torch.device("cpu"), lambda done, figures: None, start=folder)
    model = first_encoder(run)
    written = load_file(folder / "image_encoder/model.safetensors")
    taken = model.image_encoder.state_dict()
    assert written.keys() == taken.keys()
    assert all(torch.equal(value, taken[name]) for name, value in written.items())
    fresh = first_encoder(replace(run, start=None))
    assert not torch.equal(fresh.image_embedder.redux_up.weight, model.image_embedder.redux_up.weight)


def test_what_a_style_changes_counts_more() -> None:
    plan = plan_outlines(base_encoders(BASE), random.Random(3), (768, 768), 32, 4)
    batch = plan.shown(base_encoders(BASE))
    solid = replace(plan, line=None).shown(base_encoders(BASE))
    assert batch.weight is not None
    changed = (batch.latents - solid.latents).abs().amax(2) > 0.1
    assert torch.equal(batch.weight[..., 0] > 1, changed)
    assert 0 < changed.float().mean() < 0.5
    assert solid.weight is not None
    assert (solid.weight == 1).all()


def test_the_kontext_folder_turns_a_ground_and_recolours_a_thing() -> None:
    rng = random.Random(2)
    edits = [random_edit(256, 256, rng, held_out=True, kind=kind) for kind in ("ground", "recolour") * 4]
    pipeline = open_pipeline(diffusers.FluxKontextPipeline, BASE.with_name("flux-shapes-kontext"))
    made = edit_pictures(pipeline, edits, side=256, steps=4)
    assert sum(judge_edit(edit, read(picture))[0] for edit, picture in zip(edits, made, strict=True)) >= 5
    assert plain_caption(edits[0].scene)
