"""What is in the folder that a model is saved to: nothing is lost, whatever it is, and whenever the process dies."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import peft_hooks
from peft_hooks import LoadError, SaveError
from peft_hooks.checkpoints import replacing
from peft_hooks.checkpoints.folder import STAGE
from peft_hooks.testing import tiny_transformer

from ..tools.checks import RELEASE, distance
from ..tools.methods import METHODS, backbone_of, put_adapter
from ..tools.saved import failing, vectors, with_hooks
from ..tools.stress import dying

pytestmark = pytest.mark.usefixtures("quietly")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Write a tiny transformer, which a test may fear for."""
    return tiny_transformer("bert", tmp_path / "base" / "bert")


def contents(*folders: Path) -> dict[str, bytes]:
    """Read every file, a link by where it leads."""
    found = {}
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            if not file.is_dir() or file.is_symlink():
                found[str(file)] = os.readlink(file).encode() if file.is_symlink() else file.read_bytes()
    return found


def folders_in(folder: Path) -> list[str]:
    return sorted(str(inner) for inner in folder.rglob("*") if inner.is_dir())


# --- what save did not write


def plain_transformers(build: Any, base: Path, at: Path) -> Any:
    shutil.copytree(base, at)
    return build(at)


def sentence_transformer(build: Any, base: Path, at: Path) -> Any:
    """Load a whole model from its folder, as most begin."""
    from sentence_transformers import SentenceTransformer

    build(base, None, dense=RELEASE >= (3, 0)).save(str(at))
    model = SentenceTransformer(str(at), device="cpu").eval()
    put_adapter(model, "prompt_tuning")
    return model


def old_layout(build: Any, base: Path, at: Path) -> Any:
    """Load a model whose Transformer is in a folder of its own, as before Sentence Transformers 2.0."""
    from sentence_transformers import SentenceTransformer

    build(base, None, dense=False).save(str(at))
    inner = at / "0_Transformer"
    inner.mkdir()
    for file in at.iterdir():
        if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
            file.rename(inner / file.name)
    modules = json.loads((at / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (at / "modules.json").write_text(json.dumps(modules))
    model = SentenceTransformer(str(at), device="cpu").eval()
    put_adapter(model, "prompt_tuning")
    return model


def given_to_load(build: Any, base: Path, at: Path) -> Any:
    """Load an adapter with its base model elsewhere than it was."""
    shutil.copytree(base, at)
    peft_hooks.save(build(base), at.parent / "adapter")
    return peft_hooks.load(at.parent / "adapter", base_model=at, device="cpu")


def unrelated(build: Any, base: Path, at: Path) -> Any:
    tiny_transformer("bert", at, seed=5)
    return build(base)


def sharded(build: Any, base: Path, at: Path) -> Any:
    backbone_of(build(base, None)).save_pretrained(str(at), max_shard_size="8KB")
    assert len(list(at.glob("model-*.safetensors"))) > 1
    return build(base)


def weights_alone(build: Any, base: Path, at: Path) -> Any:
    """Put nothing there whose name a saved model has."""
    at.mkdir()
    shutil.copy(base / "model.safetensors", at / "model.safetensors")
    return build(base)


def plain_save(build: Any, base: Path, at: Path) -> Any:
    """Let the library itself save a model with an adapter, which nothing of ours listed."""
    model = build(base, dense=RELEASE >= (3, 0))
    model.save(str(at))
    return model


def above_the_base(build: Any, base: Path, at: Path) -> Any:
    shutil.copytree(base, at / "inner" / "bert")
    return build(at / "inner" / "bert")


def base_added(build: Any, base: Path, at: Path) -> Any:
    """Add another full model to a folder that save wrote."""
    model = build(base)
    peft_hooks.save(model, at)
    shutil.copy(base / "config.json", at)
    shutil.copy(base / "model.safetensors", at)
    return model


def card_edited(build: Any, base: Path, at: Path) -> Any:
    model = build(base)
    peft_hooks.save(model, at)
    with (at / "README.md").open("a") as card:
        card.write("What I found out about this model.")
    return model


def weights_exchanged(build: Any, base: Path, at: Path) -> Any:
    """Put another adapter, of the same name and size, in the place of the one that was saved."""
    model = build(base)
    peft_hooks.save(model, at)
    other = build(base, None)
    put_adapter(other, "prompt_tuning", seed=9)
    backbone_of(other).save_pretrained(str(at))
    return model


def file_linked(build: Any, base: Path, at: Path) -> Any:
    """Keep a file of the saved model elsewhere, with a link in its place."""
    model = build(base)
    peft_hooks.save(model, at)
    (at / "adapter_model.safetensors").rename(at.parent / "kept.safetensors")
    (at / "adapter_model.safetensors").symlink_to(at.parent / "kept.safetensors")
    return model


def folder_linked(build: Any, base: Path, at: Path) -> Any:
    model = build(base)
    peft_hooks.save(model, at)
    (at / "base").symlink_to(base)
    return model


def no_list(build: Any, base: Path, at: Path) -> Any:
    """Save as an earlier version did, without a list, and add a base model."""
    model = base_added(build, base, at)
    forget_list(at)
    return model


def notes_in_a_module(build: Any, base: Path, at: Path) -> Any:
    model = build(base)
    peft_hooks.save(model, at)
    forget_list(at)
    (at / "1_Pooling" / "notes.txt").write_text("mine")
    return model


def git(build: Any, base: Path, at: Path) -> Any:
    model = build(base)
    peft_hooks.save(model, at)
    (at / ".git").mkdir()
    (at / ".git" / "HEAD").write_text("ref: refs/heads/main")
    return model


def forget_list(at: Path) -> None:
    """Leave of the list what an earlier version of save wrote: none."""
    saved = json.loads((at / "peft_hooks.json").read_text())
    del saved["files"]
    (at / "peft_hooks.json").write_text(json.dumps(saved))


STRANGERS: dict[str, tuple[Callable[[Any, Path, Path], Any], str]] = {
    "a plain transformers folder": (plain_transformers, "the base model is there, in "),
    "the base model's own folder": (sentence_transformer, "the base model is there, in "),
    "the layout with 0_Transformer": (old_layout, "the base model is there, in "),
    "the folder given as base_model=": (given_to_load, "the base model is there, in "),
    "a folder above the base's": (above_the_base, "the base model is there, in "),
    "an unrelated model": (unrelated, "config.json .*not written by peft_hooks.save"),
    "weights in parts": (sharded, "config.json .*not written by peft_hooks.save"),
    "weights and nothing else": (weights_alone, "model.safetensors .*not written by peft_hooks.save"),
    "a save of the library's own": (plain_save, "not written by peft_hooks.save"),
    "a base added to a saved model": (base_added, "config.json .*not written by peft_hooks.save"),
    "the same, of an earlier version": (no_list, "config.json .*not written by peft_hooks.save"),
    "notes in an earlier version's": (notes_in_a_module, "1_Pooling/notes.txt .*not written by"),
    "git's history": (git, r".git/HEAD .*not written by peft_hooks.save"),
    "an edited card": (card_edited, "README.md .*changed since peft_hooks.save wrote it"),
    "another adapter": (weights_exchanged, "(changed since peft_hooks.save wrote it|not written by)"),
    "a link in the place of a file": (file_linked, "adapter_model.safetensors .*changed since"),
    "a link to a folder": (folder_linked, "base .*not written by peft_hooks.save"),
}


@pytest.mark.parametrize("given", ["absolute", "relative", "link", "dots"])
@pytest.mark.parametrize("what", STRANGERS)
def test_what_save_did_not_write_is_refused_and_stays(
    base: Path, tmp_path: Path, what: str, given: str, monkeypatch: pytest.MonkeyPatch, build: Any
) -> None:
    """Whatever is in the folder, and however it is called."""
    make, message = STRANGERS[what]
    target = tmp_path / "target"
    model = make(build, base, target)
    (tmp_path / "link").symlink_to(target)
    monkeypatch.chdir(tmp_path)
    path = {"absolute": target, "relative": "target", "link": "link", "dots": f"{target}/../base/../target/."}[given]
    before, folders = contents(tmp_path), folders_in(tmp_path)
    with pytest.raises(SaveError, match=message) as caught:
        peft_hooks.save(model, path)
    assert str(target) in str(caught.value) and "give a" in str(caught.value)
    assert contents(tmp_path) == before and folders_in(tmp_path) == folders


def test_a_route_that_save_wrote_itself_and_that_is_a_base_now_stays(base: Path, tmp_path: Path, build: Any) -> None:
    """A Router's Transformer without an adapter is saved whole; another model's prompt may be trained on it."""
    from sentence_transformers import SentenceTransformer

    from peft_hooks.testing.models import pipeline_modules

    modules = pipeline_modules()
    adapted, whole = build(base), build(base, None)
    routes = {"query": [adapted[0], adapted[1]], "document": [whole[0], whole[1]]}
    router = SentenceTransformer(modules=[getattr(modules, "Router", modules.Asym)(routes)], device="cpu").eval()
    target = tmp_path / "target"
    peft_hooks.save(router, target)
    peft_hooks.save(router, target)  # its own
    (weights,) = target.rglob("model.safetensors")
    model = build(weights.parent)
    before = contents(target)
    with pytest.raises(SaveError, match="the base model is there"):
        peft_hooks.save(model, target)
    assert contents(target) == before


def test_a_model_is_saved_beside_its_base_or_in_a_folder_of_it(base: Path, tmp_path: Path, build: Any) -> None:
    model = with_hooks(build(base))
    before = contents(base)
    for target in (base / "tuned", base.parent / "tuned"):
        peft_hooks.save(model, target)
        assert distance(vectors(peft_hooks.load(target, device="cpu")), vectors(model)) < 1e-6
    assert {name: held for name, held in contents(base).items() if "/tuned/" not in name} == before


def test_no_folder_where_none_can_be_made_is_said(base: Path, tmp_path: Path, build: Any) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SaveError, match=r"file/model: .*NotADirectoryError"):
        peft_hooks.save(build(base), tmp_path / "file" / "model")


# --- what save wrote is replaced


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "lora"])
def test_what_save_wrote_is_replaced_whole(base: Path, tmp_path: Path, method: str, listed: bool, build: Any) -> None:
    """Also by what an earlier version of it wrote, which listed nothing."""
    model, target = build(base, method), tmp_path / "model"
    backbone_of(model).add_adapter("b", METHODS[method](model))
    peft_hooks.save(model, target)
    if not listed:
        forget_list(target)
    second = with_hooks(build(base, "prefix_tuning", dense=False))
    peft_hooks.save(second, target)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "base"] == ["model"]
    peft_hooks.save(second, tmp_path / "fresh")
    assert {file.relative_to(target) for file in target.rglob("*")} == {
        file.relative_to(tmp_path / "fresh") for file in (tmp_path / "fresh").rglob("*")
    }
    assert distance(vectors(peft_hooks.load(target, device="cpu")), vectors(second)) < 1e-6


def test_a_folder_with_empty_folders_in_it_is_empty(base: Path, tmp_path: Path, build: Any) -> None:
    """A new volume has a `lost+found`."""
    (tmp_path / "model" / "lost+found").mkdir(parents=True)
    for _ in range(2):
        peft_hooks.save(build(base), tmp_path / "model")
    assert (tmp_path / "model" / "lost+found").is_dir()


def test_the_working_directory_stays_one(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Any
) -> None:
    model = with_hooks(build(base))
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    for _ in range(2):
        peft_hooks.save(model, ".")
        assert Path.cwd() == tmp_path / "model" and Path("modules.json").is_file()
        assert distance(vectors(peft_hooks.load(".", device="cpu")), vectors(model)) < 1e-6


def test_a_mount_point_is_saved_to(base: Path, tmp_path: Path, build: Any) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(volume)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        model = with_hooks(build(base))
        for _ in range(2):
            peft_hooks.save(model, volume)
            assert os.path.ismount(volume)
            assert distance(vectors(peft_hooks.load(volume, device="cpu")), vectors(model)) < 1e-6
        with pytest.raises(OSError, match="busy"):
            volume.rename(tmp_path / "elsewhere")  # why nothing is renamed over a directory
    finally:
        subprocess.run(["umount", str(volume)], check=True)


def test_a_filesystem_without_hard_links_is_saved_to(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Any
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    model = with_hooks(build(base))
    for _ in range(2):
        peft_hooks.save(model, tmp_path / "model")
    assert distance(vectors(peft_hooks.load(tmp_path / "model", device="cpu")), vectors(model)) < 1e-6


def test_what_two_threads_save_at_once_is_one_of_both(base: Path, tmp_path: Path, build: Any) -> None:
    """As the processes of a distributed run may: one waits for the other."""
    models = [with_hooks(build(base)), with_hooks(build(base, "p_tuning"))]
    raised: list[BaseException] = []

    def save(model: Any) -> None:
        try:
            for _ in range(3):
                peft_hooks.save(model, tmp_path / "model")
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=save, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []
    loaded = vectors(peft_hooks.load(tmp_path / "model", device="cpu"))
    assert min(distance(loaded, vectors(model)) for model in models) < 1e-6
    assert not (tmp_path / "model" / STAGE).exists()


# --- a process that dies


class Killer(nn.Module):
    """Ends the process when it is saved, with no chance to clean up."""

    def save(self, *_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def killed(step: Callable[[], Any]) -> bool:
    """Run a step in another process; tell whether it was killed."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # the parent's other threads do not exist here, and OpenMP would wait for them
        with contextlib.suppress(BaseException):
            step()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


@needs_fork
@pytest.mark.parametrize("former", [False, True])
def test_saves_that_are_killed_pile_nothing_up_and_leave_the_former_model(
    base: Path, tmp_path: Path, former: bool, build: Any
) -> None:
    model, target = with_hooks(build(base)), tmp_path / "model"
    if former:
        peft_hooks.save(model, target)
    wanted = vectors(model)
    model.add_module("4", Killer())
    for _ in range(3):
        assert killed(lambda: peft_hooks.save(model, target))
        assert [entry.name for entry in tmp_path.iterdir() if entry.name != "base"] == ["model"]
        assert [entry.name for entry in target.iterdir() if entry.name.startswith(".")] == [STAGE]
        if former:
            assert distance(vectors(peft_hooks.load(target, device="cpu")), wanted) < 1e-6
            continue
        for path in (target, target / STAGE):
            with pytest.raises(LoadError, match=r"interrupted.* incomplete"):
                peft_hooks.load(path)
    del model._modules["4"]
    peft_hooks.save(model, target)
    assert not [entry for entry in target.iterdir() if entry.name.startswith(".")]
    assert distance(vectors(peft_hooks.load(target, device="cpu")), wanted) < 1e-6


@pytest.mark.slow
@needs_fork
def test_a_save_that_is_killed_at_any_step_of_the_last_leaves_one_model_or_the_other(
    base: Path, tmp_path: Path, build: Any
) -> None:
    """The process dies at its nth line in the file that puts things in their places, for every n."""
    first, second, target = with_hooks(build(base, "p_tuning")), with_hooks(build(base)), tmp_path / "model"
    peft_hooks.save(first, target)
    shutil.copytree(target, tmp_path / "kept")
    wanted = [vectors(first), vectors(second)]
    found = []
    for last in range(4, 10_000, 23):
        shutil.rmtree(target)
        shutil.copytree(tmp_path / "kept", target)
        if not killed(lambda last=last: dying(last, lambda: peft_hooks.save(second, target), replacing.__file__)):
            break
        distances = [distance(vectors(peft_hooks.load(target, device="cpu")), each) for each in wanted]
        assert min(distances) < 1e-6, f"neither, after line {last}: {distances}"
        found.append(distances.index(min(distances)))
        peft_hooks.save(second, target)
        assert not (target / STAGE).exists() and not (target / "prompt_encoder.safetensors").exists()
        assert distance(vectors(peft_hooks.load(target, device="cpu")), wanted[1]) < 1e-6
    assert found == sorted(found) and set(found) == {0, 1} and len(found) > 10


@needs_fork
def test_what_was_written_over_a_save_that_was_cut_off_is_not_passed_over(
    base: Path, tmp_path: Path, build: Any
) -> None:
    """The stage holds a whole model, and is not what was saved last."""
    model, target = with_hooks(build(base)), tmp_path / "model"
    peft_hooks.save(model, target)
    shutil.copytree(target, tmp_path / "stage")
    (tmp_path / "stage").rename(target / STAGE)
    assert distance(vectors(peft_hooks.load(target, device="cpu")), vectors(model)) < 1e-6
    (target / "adapter_model.safetensors").write_bytes(b"another")
    with pytest.raises(LoadError, match=r"interrupted.* changed since.*peft_hooks.saving"):
        peft_hooks.load(target)


@pytest.mark.parametrize("former", [False, True])
def test_a_save_that_raises_leaves_no_stage(base: Path, tmp_path: Path, former: bool, build: Any) -> None:
    model = with_hooks(build(base))
    if former:
        peft_hooks.save(model, tmp_path / "model")
    before, folders = contents(tmp_path), folders_in(tmp_path)
    with failing(model), pytest.raises(OSError, match=r"no space left on device"):
        peft_hooks.save(model, tmp_path / "model")
    assert contents(tmp_path) == before and folders_in(tmp_path) == folders
