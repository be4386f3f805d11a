"""The loss and score curves of a training run, as a picture for docs/."""

from collections.abc import Sequence
from pathlib import Path


def draw_curves(history: Sequence[dict[str, float]], path: Path, scores: Sequence[dict[str, float]] = ()) -> None:
    """Plot loss (and, where measured, scores in percent) against pictures seen; `scores` rows hold a "step" too."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2 if scores else 1, figsize=(10 if scores else 6, 3.6), squeeze=False)
    loss = axes[0][0]
    loss.semilogy([row["step"] for row in history], [row["loss"] for row in history], color="tab:blue")
    loss.set(xlabel="step (about 64 pictures of 512x512)", ylabel="loss", title="flow matching loss")
    loss.grid(alpha=0.3)
    if scores:
        for name in [key for key in scores[0] if key != "step"]:
            axes[0][1].plot([row["step"] for row in scores], [row[name] for row in scores], marker="o", label=name)
        axes[0][1].set(xlabel="step", ylabel="percent right", title="held-out prompts, 512x512", ylim=(0, 102))
        axes[0][1].legend(fontsize=7)
        axes[0][1].grid(alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
