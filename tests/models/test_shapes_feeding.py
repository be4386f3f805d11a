"""Training that other processes feed: what they draw is the same, rows come from the newest, and a step learns."""

import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models.shapes.fast import Fast, Feed, Store
from models.shapes.flow import Batch, new_transformer
from models.shapes.siblings.control import plan_controls, plan_edges
from models.shapes.siblings.edits import plan_edits
from models.shapes.siblings.fill import plan_fillings
from models.shapes.siblings.lora import PLANS
from models.shapes.siblings.redux import plan_sights
from models.shapes.text import Encoders
from models.shapes.train_flow import FlowTraining
from models.shapes.train_siblings import BASE, TRAINERS, Run, base_encoders

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
KEYS = {((256, 256), 32): 1.0, ((256, 192), 24): 1.0}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The process that draws takes the other core; two threads would wait for each other at every operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoders() -> Encoders:
    return base_encoders(BASE)


@pytest.mark.parametrize(
    "plan", [plan_edits, plan_fillings, plan_controls, plan_edges, plan_sights, PLANS["outline"], PLANS["teal"]]
)
def test_plans_survive_the_way_between_processes(encoders: Encoders, plan: object) -> None:
    assert callable(plan)
    planned = plan(encoders, random.Random(4), (256, 192), 32, 3)
    batches = []
    for told in (planned, pickle.loads(pickle.dumps(planned))):
        torch.manual_seed(1)
        batches.append(told.shown(encoders))
    first, second = batches
    assert first.latents.shape == (3, 12, 64)
    assert first.sequence.shape == (3, 32, 128)
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(second, name)) if isinstance(value, torch.Tensor) else True


def rows(value: float, count: int = 4) -> Batch:
    full = torch.full((count, 4, 64), value)
    return Batch(full, torch.zeros(count, 96), torch.zeros(count, 8, 128), 64, 256, reference=full + 1)


def test_a_store_keeps_its_newest_rows_and_their_columns_together() -> None:
    torch.manual_seed(0)
    store = Store(capacity=8)
    store.add(rows(1.0))
    assert set(store.sample(64).latents.unique().tolist()) == {1.0}
    store.add(rows(2.0))
    store.add(rows(3.0))
    taken = store.sample(256)
    assert set(taken.latents.unique().tolist()) == {2.0, 3.0}
    assert taken.reference is not None
    assert torch.equal(taken.reference, taken.latents + 1)
    assert (taken.height, taken.width) == (64, 256)


def test_a_fed_training_learns(encoders: Encoders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.shapes.fast.CHUNK", 8)
    feed = Feed(plan_edits, encoders, 1, keys=KEYS)
    try:
        training = FlowTraining(
            encoders,
            device=torch.device("cpu"),
            tokens=256,
            model=new_transformer(width=32, double=1, single=1),
            guided_from=0.9,
            fast=Fast(feed),
            with_reference=True,
        )
        losses = [float(training.step(0.3)) for _ in range(60)]
        assert training.steps == 60
        assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
        assert torch.isfinite(torch.as_tensor(training.step(0.95)))  # with guidance
    finally:
        feed.close()


def test_a_feed_whose_processes_have_ended_says_so(encoders: Encoders) -> None:
    feed = Feed(plan_edits, encoders, 1, keys=KEYS)
    feed.close()
    with pytest.raises(RuntimeError, match="have ended"):
        emptied(feed)


def emptied(feed: Feed) -> None:
    while feed.take(wait=0.1) is not None:
        pass
    feed.take(wait=0.1)


def test_a_run_starts_from_given_weights_and_exports_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.shapes.fast.CHUNK", 4)
    (tmp_path / "flux-shapes").symlink_to(BASE)
    device = torch.device("cpu")

    def silent(done: float, figures: dict[str, float]) -> None: ...

    TRAINERS["outline"](Run(tmp_path / "flux-shapes", tmp_path, tmp_path, 0.01, 64, device, silent))
    start = tmp_path / "outline.pt"
    made = tmp_path / "loras/outline.safetensors"
    made.unlink()
    run = Run(
        tmp_path / "flux-shapes", tmp_path, tmp_path / "more", 6, 64, device, silent, start=start, workers=1, exports=2
    )
    TRAINERS["outline"](run)
    state = torch.load(tmp_path / "more/outline.pt", weights_only=False)
    assert state["progress"][1] > 1
    assert len(state["scores"]) >= 1  # it was exported before the end, too
    assert made.exists()
    with pytest.raises(ValueError, match="belongs to another model"):
        run.started(new_transformer())
