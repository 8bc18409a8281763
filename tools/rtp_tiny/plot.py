"""How did training go?  Draws `loss_curve.png` of the model card from `training_log.jsonl`.

    python -m tools.rtp_tiny.plot

Needs matplotlib, which the engine does not.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt

from tools.rtp_tiny.export import ASSETS

LOG = Path(__file__).parent / "training_log.jsonl"


def read_log(path: Path) -> tuple[list[dict], list[dict]]:
    """Return the entries of training steps and those of evaluations."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [entry for entry in entries if "text_loss" in entry]
    evaluations = [entry for entry in entries if "held_out" in entry]
    return steps, evaluations


def draw(log: Path, picture: Path) -> None:
    """Draw losses on the left and task accuracies on the right, over training steps."""
    steps, evaluations = read_log(log)
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    x = [entry["step"] for entry in steps]
    losses.plot(x, [entry["text_loss"] for entry in steps], lw=0.8, label="text, training")
    losses.plot(x, [entry["answer_loss"] for entry in steps], lw=0.8, label="answers, training")
    x = [entry["step"] for entry in evaluations]
    held_out = [entry["held_out"]["nats_per_token"] for entry in evaluations]
    losses.plot(x, held_out, "k.-", label="text, held out")
    losses.set(xlabel="step", ylabel="nats per token", ylim=(0, None))
    losses.legend()
    for kind in evaluations[-1]["task_accuracy"]:
        accuracies.plot(x, [e["task_accuracy"][kind] for e in evaluations], ".-", label=kind)
    accuracies.set(xlabel="step", ylabel="share of right answers", ylim=(0, 1.02))
    accuracies.legend(fontsize=7)
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    draw(LOG, ASSETS / "loss_curve.png")
