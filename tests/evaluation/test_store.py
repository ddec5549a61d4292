import os
import threading
from pathlib import Path

import pytest
import torch

from efface.edits.edit import Edit
from efface.errors import WriteError
from efface.evaluation.store import Store
from efface.methods.negative import NegativePrompt
from efface.models import sampling
from efface.models.model import Model
from efface.query import Query
from efface.util.files import cache_folder, writing

QUERIES = [Query("a church", 0, 2), Query("a dog", 1, 3), Query("a church", 0, 2)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def drawn(monkeypatch) -> list[Query]:
    """Record every query that is really drawn."""
    asked: list[Query] = []
    generate = Model.generate

    def counted(self, queries, batch=32):
        asked.extend(queries)
        return generate(self, queries, batch)

    monkeypatch.setattr(Model, "generate", counted)
    return asked


def files(store: Store) -> list[Path]:
    return sorted(path for path in store.root.rglob("*") if path.is_file())


def test_images_are_those_of_the_model_and_generated_once(tiny: Model, store: Store, drawn: list[Query]):
    first = store.images(tiny, "", QUERIES)
    assert len(drawn) == 2  # one of the three is asked for twice
    assert len(files(store)) == 2
    assert first.shape == (3, 3, 16, 16)
    assert torch.equal(first[0], first[2])
    assert torch.equal(store.images(tiny, "", QUERIES), first)
    assert len(drawn) == 2
    plain = tiny.generate(QUERIES)
    assert (first - plain).abs().max() <= 0.5 / 255 + 1e-5


def test_only_missing_images_are_generated(tiny: Model, store: Store, drawn: list[Query]):
    store.images(tiny, "", QUERIES[:1])
    drawn.clear()
    more = [*QUERIES, Query("a fox", 5, 2)]
    store.images(tiny, "", more)
    assert drawn == [QUERIES[1], more[3]] or drawn == [more[3], QUERIES[1]]


def test_keys_depend_on_model_edit_query_and_sampler(tiny: Model, tiny2: Model, store: Store, monkeypatch):
    edit = NegativePrompt()(tiny, "church")
    with edit.applied(tiny) as edited:
        keys = {
            store.key(tiny, "", QUERIES[0]),
            store.key(tiny, "", QUERIES[1]),
            store.key(tiny2, "", QUERIES[0]),
            store.key(tiny, edit.id, QUERIES[0]),
            store.key(edited, edit.id, QUERIES[0]),
        }
        assert store.key(edited, edit.id, QUERIES[0]) in keys
    monkeypatch.setattr(sampling, "VERSION", sampling.VERSION + 1)
    keys.add(store.key(tiny, "", QUERIES[0]))
    assert len(keys) == 6


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"hello", lambda b: b[:-30] + bytes(30)]
)
def test_a_damaged_image_is_generated_again(tiny: Model, store: Store, drawn: list[Query], damage):
    images = store.images(tiny, "", QUERIES[:1])
    path = files(store)[0]
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    drawn.clear()
    assert torch.equal(store.images(tiny, "", QUERIES[:1]), images)
    assert len(drawn) == 1
    assert path.read_bytes() == whole


def test_a_stopped_run_resumes(tiny: Model, store: Store, monkeypatch):
    queries = [Query("a church", seed, 2) for seed in range(6)]
    generate, calls = Model.generate, []

    def stop(self, queries, batch=32):
        calls.append(len(queries))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, queries, batch)

    monkeypatch.setattr(Model, "generate", stop)
    with pytest.raises(KeyboardInterrupt):
        store.images(tiny, "", queries, batch=2)
    assert len(files(store)) == 4
    assert len(store.images(tiny, "", queries, batch=2)) == 6
    assert calls == [2, 2, 2, 2]


def test_killed_between_the_images_of_a_batch_it_has_the_same_images(tiny: Model, store: Store, monkeypatch, drawn):
    """The batch was kept whole before its first image was written, so the second is not generated in another batch."""
    queries, other = [Query("a church", seed, 2) for seed in range(3)], Store(store.root.with_name("other"))
    expected = other.images(tiny, "", queries, batch=2)
    write, written = Store._write, []

    def killed(self, key, image, asked):
        if written:
            raise KeyboardInterrupt
        written.append(key)
        write(self, key, image, asked)

    monkeypatch.setattr(Store, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        store.images(tiny, "", queries, batch=2)
    monkeypatch.setattr(Store, "_write", write)
    drawn.clear()
    assert torch.equal(store.images(tiny, "", queries, batch=2), expected)
    assert [query.seed for query in drawn] == [2]
    assert not list((store.root / "batches").iterdir())


def test_a_batch_that_cannot_be_read_is_generated_again(tiny: Model, store: Store):
    (store.root / "batches").mkdir(parents=True)
    (store.root / "batches" / "half.safetensors").write_bytes(b"half")
    expected = Store(store.root.with_name("other")).images(tiny, "", QUERIES)
    assert torch.equal(store.images(tiny, "", QUERIES), expected)
    assert not list((store.root / "batches").iterdir())


def test_two_at_once_agree(tiny: Model, store: Store):
    results: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(store.images(tiny, "", QUERIES))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(*results)
    assert len(files(store)) == 2


def test_a_folder_that_cannot_be_made_is_a_write_error(tiny: Model, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match="cannot write to the store"):
        Store(tmp_path / "file").images(tiny, "", QUERIES)


def test_no_queries_give_no_images(tiny: Model, store: Store):
    assert len(store.images(tiny, "", [])) == 0


def test_the_cache_folder_is_where_the_environment_says(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("EFFACE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path
    assert Store.default().root == tmp_path
    monkeypatch.delenv("EFFACE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "efface"


def test_the_query_is_written_beside_the_pixels(tiny: Model, store: Store):
    from PIL import Image

    store.images(tiny, "", QUERIES[:1])
    with Image.open(files(store)[0]) as image:
        assert image.info["efface"] == QUERIES[0].key


def test_nothing_else_is_left_in_the_folder(tiny: Model, store: Store):
    with writing(store.root.parent / "other") as path:
        path.write_text("x")
    store.images(tiny, Edit().id, QUERIES)
    assert all(path.suffix == ".png" for path in files(store))
    assert os.listdir(store.root) == ["images"]
