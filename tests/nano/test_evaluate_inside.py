"""The evaluation's look inside the network, through the daemon, and what it makes of a sweep."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.nano import attention, checkpoint
from models.nano.evaluation import inside, report, served
from models.nano.export import trainee_of
from models.nano.geometry import GEOMETRY
from models.nano.model import Trainee

TINY = replace(GEOMETRY, num_hidden_layers=3, num_hash_layers=1, compress_ratios=(0, 4, 128),
               n_routed_experts=8, num_attention_heads=2)  # fmt: skip
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 8000, 700)]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of three layers, in the released layout."""
    trainee = Trainee(TINY, torch.device("cpu"), 1, False)
    folder = tmp_path_factory.mktemp("inside") / "parent"
    checkpoint.write_parent(folder, TINY, trainee.net.state_dict())
    return folder


def test_the_mass_is_that_of_the_entries_scored_highest() -> None:
    """By hand: the two best of three hold half, and a query that sees only k is left out."""
    watch = inside.Watch([2])
    low = attention.HIDDEN
    scores = torch.tensor([[1.0, 3.0, 2.0], [9.0, 1.0, low]])
    watch.note(4, torch.tensor([[0.4, 0.1, 0.3], [0.2, 0.7, 0.0]]), scores)
    assert watch.means() == {"4": {"2": pytest.approx(0.5), "n_2": 1}}


def test_watching_changes_nothing_and_sees_what_attention_does(parent: Path) -> None:
    """The output is the unwatched one, and the attention seen is that of the indexer's own loss."""
    trainee = trainee_of(parent)
    trainee.choose_sparsely(False)
    ids = torch.tensor([IDS[:640]])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Noting(inside.Watch):
        def note(self, layer: int, looked: torch.Tensor, scores: torch.Tensor) -> None:
            seen.append((looked, scores))

    Noting([16])
    with torch.no_grad():
        plain = trainee.hidden(ids)
        divergence = trainee.indexers[0].divergence
        trainee.net.config._attn_implementation = inside.NAME
        assert torch.equal(trainee.hidden(ids), plain)
    looked, scores = seen[0]
    target = looked / looked.sum(dim=-1, keepdim=True)
    near = target.clamp_min(1e-9).log() - torch.log_softmax(scores, dim=-1)
    mine = float((target * near).sum(dim=-1).mean())
    # Over every 61st query, theirs over all.
    assert mine == pytest.approx(float(divergence), rel=0.3)
    assert looked.shape == (640 // inside.SPACING, 160) and float(looked.sum(dim=1).max()) < 2


def test_loads_and_masses_of_a_model(parent: Path) -> None:
    """A larger k holds more, no k is reported that no query sees, and loads stand around 1."""
    found = inside.measure(parent, [IDS, IDS[:300]], top_k=(8, 64, 4096))
    assert found["tokens"] == 640 + 256
    (mass,) = found["mass"].values()
    assert 0 < mass["8"] < mass["64"] < 1 and "4096" not in mass
    assert list(found["load"]) == ["0", "1", "2"]
    assert all(row["max"] >= 1 >= row["min"] for row in found["load"].values())


def test_a_daemon_is_timed_through_its_socket(parent: Path) -> None:
    """A real daemon answers two prompts of given ids, and its times are positive."""
    found = served.measure(parent, {"short": IDS[:16], "long": IDS[:300]}, 1)
    assert found["start"]["seconds"] > 0
    assert found["long"]["prompt_tokens"] == 300
    assert all(
        found[n]["first_token_s"] > 0 < found[n]["tokens_a_second"] for n in ("short", "long")
    )


def test_the_smallest_top_k_without_loss() -> None:
    """A point of mean recall may be lost and no more."""

    def row(*rates: float, n: int = 100) -> dict[str, object]:
        return {"recall": {str(i): r for i, r in enumerate(rates)}, "n": n, "bits_a_byte": 1.0}

    sweep = {"64": row(0.9, 0.7), "128": row(0.9, 0.89), "512": row(0.9, 0.9)}
    assert report.smallest(sweep) == "128"
    assert report.smallest(sweep | {"64": row(0.95, 0.84)}) == "64"
    assert report.top_k(sweep)[-1].endswith(" 128.")
    few = {k: row(0.9, n=4) for k in sweep}
    assert "do not tell" in report.top_k(few)[-1]
