"""Mini is built part by part; the tables, the card and the attribution that ship are what the code writes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import efface.mini
from efface.judges.mini import MiniJudge
from efface.models.model import Model, Query
from efface.training.checkpoints import read
from experiments.mini import __main__ as build
from experiments.mini import artwork, export, parts, scenes
from experiments.mini.card import card
from experiments.mini.nouns import NAMES

PACKAGE = Path(efface.mini.__file__).parent


def test_the_tables_that_ship_are_what_export_writes(tmp_path):
    export.save_concepts(tmp_path / "concepts.json")
    assert (tmp_path / "concepts.json").read_bytes() == (PACKAGE / "concepts.json").read_bytes()
    assert export.attribution() == (PACKAGE / "ATTRIBUTION.md").read_text(encoding="utf-8")


def test_the_card_that_ships_is_written_from_the_metrics_that_ship():
    found = json.loads((PACKAGE / "metrics.json").read_text(encoding="utf-8"))
    assert card(found) == (PACKAGE / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_steps_and_folder_are_flags_and_an_unknown_part_is_refused(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(build, "run", lambda *args: calls.append(args))
    build.main(["all", "--folder", str(tmp_path / "run"), "--into", str(tmp_path / "package"), "--vae-steps", "3"])
    assert [part for part, *_ in calls] == list(build.PARTS)
    assert calls[0][1:3] == (tmp_path / "run", tmp_path / "package")
    assert calls[0][3] == {**build.STEPS, "vae": 3}
    with pytest.raises(SystemExit):
        build.main(["everything"])
    assert "invalid choice" in capsys.readouterr().err


def drawings(folder: Path) -> None:
    """Write a drawing of every object by a colour set and an ink set: a square of its own size and colour."""
    found = {}
    for i, name in enumerate(NAMES):
        for j, art in enumerate(("noto", "emojione-monotone")):
            drawing = np.zeros((artwork.SIZE, artwork.SIZE, 4), np.uint8)
            drawing[10 : 60 + i, 10 : 60 + i] = (5 * i, 100 * j, 200, 255)
            found[f"{name}|{art}|0"] = drawing
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "drawings.npz", **found)


@pytest.mark.slow
def test_every_part_runs_and_goes_on_from_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "CHUNK", 128)
    monkeypatch.setattr(scenes, "LEARNED", 128)
    monkeypatch.setattr(parts.judges, "COUNT", 128)
    monkeypatch.setattr(parts.judges, "SEEN", {"noto", "emojione-monotone"})
    folder, into, steps = tmp_path / "run", tmp_path / "package", dict.fromkeys(build.STEPS, 1)
    drawings(folder / "art")
    for part in ("scenes", "vae", "text", "latents"):
        parts.run(part, folder, into, steps)
    parts._unet_worker(0, 1, "", folder, 1)  # in this process; two meet in test_network.py
    for part in ("judges", "export"):
        parts.run(part, folder, into, steps)
    parts.run("vae", folder, into, steps | {"vae": 2})
    assert read(folder / "vae.safetensors")[2]["step"] == 2
    image = Model.load(into / "weights").generate([Query("a picture of a church", 0, 1)])
    assert image.shape == (1, 3, 64, 64)
    judge = MiniJudge(into / "judges")
    assert judge.classes == NAMES
    torch.testing.assert_close(judge.objects(image).sum(), torch.tensor(1.0))
