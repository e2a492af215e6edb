"""Trained timm weights, against a stand-in hub: fetched, cached, broken off, out of reach, put by hand."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load, save
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from vitviz_nb.models import hub
from vitviz_nb.models import loading as models
from vitviz_nb.models.reading import activations
from vitviz_nb.models.sites import find_sites
from vitviz_nb.utils.errors import VitvizError

from .hub_stand_in import StandIn

NAME = "test_vit.r160_in1k"  # timm's own smallest: 1.5 MB
REPO = "timm/test_vit.r160_in1k"
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def weights() -> bytes:
    """A safetensors file of random weights for NAME."""
    torch.manual_seed(1)
    return save(timm.create_model("test_vit").state_dict())


@pytest.fixture
def server(weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A stand-in hub that has NAME, and this process pointed at it, with empty caches under tmp_path."""
    with StandIn({REPO: {"model.safetensors": weights}}) as server:
        constants, template = huggingface_hub.constants, server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)  # read from HF_ENDPOINT at import
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        # versions before 1.x have their own copy of it, and sessions that remember whether they are offline
        monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        quick = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})  # no pause before a download is tried again
        monkeypatch.setattr(huggingface_hub.file_download, "time", quick)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "vitviz"))
        yield server
        getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()


def same(model: nn.Module, weights: bytes) -> bool:
    """Whether the model holds exactly these tensors."""
    have: dict[str, Tensor] = model.state_dict()
    want = load(weights)
    return have.keys() == want.keys() and all(torch.equal(have[key], want[key]) for key in want)


def put(tmp_path: Path, content: bytes, name: str = NAME) -> Path:
    """A file where a user may put it by hand."""
    file = tmp_path / "vitviz" / "weights" / f"{name}.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


def test_weights_come_from_the_hub_once(server: StandIn, weights: bytes):
    model = hub.create_pretrained(NAME)
    assert same(model, weights)
    assert model.pretrained_cfg["input_size"] == (3, 160, 160) and "file" not in model.pretrained_cfg
    asked = len(server.requests)
    assert asked
    server.die()
    assert same(hub.create_pretrained(NAME), weights)
    assert len(server.requests) == asked


def test_a_model_by_name_is_ready_to_be_shown_pictures(server: StandIn, weights: bytes):
    """``vv.load`` over the hub: the model's own weights, normalization and size, frozen; and its neurons can be read."""
    model = models.load(NAME, device="cpu")
    assert same(model.module, weights) and model.title == NAME
    assert model.image_size == 160 and model.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert not model.module.training and not any(p.requires_grad for p in model.module.parameters())
    images = torch.rand(2, 3, 160, 160)
    assert torch.allclose(model(images), model.module((images - 0.5) / 0.5), atol=1e-5)
    assert [len(values[0]) for values in activations(model, "mlp", images)] == [place.units for place in find_sites(model)["mlp"]]


@pytest.mark.slow
def test_as_a_user_sets_it_up(server: StandIn, tmp_path: Path, weights: bytes):
    """HF_ENDPOINT and HF_HOME in the environment, nothing patched."""
    expected = tmp_path / "expected.safetensors"
    expected.write_bytes(weights)
    code = (
        "import sys, torch; from safetensors.torch import load_file; from vitviz_nb.models.hub import create_pretrained;"
        f"have = create_pretrained({NAME!r}).state_dict(); want = load_file(sys.argv[1]);"
        "assert all(torch.equal(have[key], want[key]) for key in want)"
    )
    env = os.environ | {
        "HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    env.pop("HF_HUB_CACHE", None)
    subprocess.run([sys.executable, "-c", code, str(expected)], env=env, check=True, timeout=60)
    assert list((tmp_path / "home" / "hub").glob("models--timm--test_vit*/snapshots/*/model.safetensors"))
    assert server.requests


def test_cut_download_is_resumed(server: StandIn, weights: bytes):
    server.cuts = 1
    try:
        model = hub.create_pretrained(NAME)
    except VitvizError as error:  # versions of huggingface_hub that do not resume within one call
        assert "failed" in str(error) and "Call again" in str(error)
        model = hub.create_pretrained(NAME)
    assert same(model, weights)


def test_cut_downloads_that_cannot_resume_end_and_leave_nothing(server: StandIn, weights: bytes, tmp_path: Path):
    server.cuts, server.resumes = -1, False
    start = time.monotonic()
    with pytest.raises(VitvizError, match=rf"Could not fetch the weights of {NAME} from repository {REPO} on {server.endpoint}"):
        hub.create_pretrained(NAME)
    assert time.monotonic() - start < 15
    assert not [file for file in tmp_path.rglob("*.safetensors")]
    server.cuts = 0
    assert same(hub.create_pretrained(NAME), weights)


def test_cut_that_nobody_notices_is_not_kept(server: StandIn, weights: bytes, tmp_path: Path):
    """As behind a proxy that kept a broken file: every length is consistent."""
    server.files[REPO] = {"model.safetensors": weights[: len(weights) // 2]}
    with pytest.raises(VitvizError, match=r"arrived damaged .* removed from the cache. Call again"):
        hub.create_pretrained(NAME)
    assert not [file for file in (tmp_path / "hub").rglob("blobs/*") if file.is_file()]
    server.files[REPO] = {"model.safetensors": weights}
    assert same(hub.create_pretrained(NAME), weights)


def test_a_blob_that_was_damaged_in_the_cache_is_told_by_its_name(server: StandIn, weights: bytes, tmp_path: Path):
    """One bit of one weight: it would load, and be another network."""
    hub.create_pretrained(NAME)
    (blob,) = [file for file in (tmp_path / "hub").rglob("blobs/*") if file.is_file()]
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(VitvizError, match="arrived damaged .*SHA-256"):
        hub.create_pretrained(NAME)
    assert same(hub.create_pretrained(NAME), weights)


@pytest.mark.parametrize(("name", "repo"), [
    (NAME, REPO), ("vit_base_patch32_clip_quickgelu_224.openai", "timm/vit_base_patch32_clip_224.openai"),
])
def test_dead_hub(server: StandIn, tmp_path: Path, name: str, repo: str):
    server.die()
    start = time.monotonic()
    with pytest.raises(VitvizError) as caught:
        hub.create_pretrained(name)
    assert time.monotonic() - start < 15
    message = str(caught.value)
    assert f"Could not fetch the weights of {name} from repository {repo} on {server.endpoint}" in message
    assert "work offline: emoji-vit, emoji-clip" in message
    assert f"{server.endpoint}/{repo}/resolve/main/model.safetensors" in message
    assert str(tmp_path / "vitviz" / "weights" / f"{name}.safetensors") in message
    assert "\n" not in message


def test_offline_mode(server: StandIn, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(VitvizError, match="HF_HUB_OFFLINE is set.*emoji-vit"):
        hub.create_pretrained(NAME)
    assert not server.requests


@pytest.mark.parametrize(("status", "says"), [
    ((404, "RepoNotFound"), rf"repository {REPO} on .* is missing or private"),
    ((404, "EntryNotFound"), rf"repository {REPO} on .* has no such file"),
    ((403, "GatedRepo"), r"gated repository .* `hf auth login`"),
    ((503, ""), r"Could not fetch the weights .*503"),
])
def test_refusals(server: StandIn, tmp_path: Path, status: tuple[int, str], says: str):
    server.status = status
    start = time.monotonic()
    with pytest.raises(VitvizError, match=says) as caught:
        hub.create_pretrained(NAME)
    assert time.monotonic() - start < 15
    assert "emoji-vit" in str(caught.value) and str(tmp_path / "vitviz" / "weights") in str(caught.value)


def test_file_put_by_hand_needs_no_hub(server: StandIn, tmp_path: Path, weights: bytes):
    server.die()
    put(tmp_path, weights)
    assert same(hub.create_pretrained(NAME), weights)


def test_file_put_by_hand_is_converted_as_timm_would(server: StandIn, tmp_path: Path, weights: bytes):
    """timm's filter functions see it: here, one that unflattens the patch embedding of early ViT checkpoints."""
    tensors = load(weights)
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"].flatten(1)
    put(tmp_path, save(tensors))
    assert same(hub.create_pretrained(NAME), weights)


@pytest.mark.parametrize("content", ["half", "empty", "html", "other model"])
def test_damaged_file_put_by_hand_is_named(server: StandIn, tmp_path: Path, weights: bytes, content: str):
    contents = {
        "half": weights[: len(weights) // 2],
        "empty": b"",
        "html": b"<!doctype html><title>Log in to this network</title>",
        "other model": save({"conv1.weight": torch.zeros(3)}),
    }
    file = put(tmp_path, contents[content])
    says = rf"weights file {re.escape(str(file))} is damaged or not of {NAME}"
    with pytest.raises(VitvizError, match=says) as caught:
        hub.create_pretrained(NAME)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800
    assert file.exists()


def test_weights_kept_as_pickle(server: StandIn, weights: bytes):
    pickled = io.BytesIO()
    torch.save(load(weights), pickled)
    server.files[REPO] = {"pytorch_model.bin": pickled.getvalue()}
    model = hub.create_pretrained(NAME)
    assert same(model, weights) and "state_dict" not in model.pretrained_cfg
    server.die()
    assert same(hub.create_pretrained(NAME), weights)


def test_weights_outside_the_hub(server: StandIn, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A few of timm's weights are plain files on the web."""
    pickled = io.BytesIO()
    torch.save(load(weights), pickled)
    server.files[REPO]["vit.pth"] = pickled.getvalue()
    url = f"{server.endpoint}/{REPO}/resolve/main/vit.pth"
    monkeypatch.setattr(
        hub, "get_pretrained_cfg", lambda name: dataclasses.replace(get_pretrained_cfg(name), hf_hub_id=None, url=url)
    )
    kept = tmp_path / "vitviz" / "weights" / f"{NAME}.pth"
    server.cuts = 1
    with pytest.raises(VitvizError, match=rf"weights of {NAME} from {url} arrived damaged .* removed from the cache"):
        hub.create_pretrained(NAME)
    assert not kept.exists()
    assert same(hub.create_pretrained(NAME), weights) and kept.exists()
    server.die()
    assert same(hub.create_pretrained(NAME), weights)


@pytest.mark.parametrize(("name", "says"), [
    ("vit_tiny_patch16_224.nope", "there are vit_tiny_patch16_224.augreg_in21k"),
    ("test_mambaout", "there are none for this architecture"),
])
def test_names_without_weights(server: StandIn, name: str, says: str):
    with pytest.raises(VitvizError, match=f"no trained weights '{name}'; {says}.*pretrained=False"):
        hub.create_pretrained(name)
    assert not server.requests


def test_interrupt_gets_through(server: StandIn, monkeypatch: pytest.MonkeyPatch):
    def interrupt(**_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "hf_hub_download", interrupt)
    with pytest.raises(KeyboardInterrupt):
        hub.create_pretrained(NAME)


MINE = "somebody/mine"


def described(server: StandIn, weights: bytes, **more) -> None:
    """Put a model of somebody's into the hub, as timm.models.push_to_hf_hub writes it."""
    config = {"architecture": "test_vit", "num_classes": 1000, "pretrained_cfg": {
        "input_size": [3, 160, 160], "fixed_input_size": True, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2],
        "num_classes": 1000, "classifier": "head", "first_conv": "patch_embed.proj", "license": "mit"} | more}
    server.files[MINE] = {"config.json": json.dumps(config).encode(), "model.safetensors": weights}


def test_a_repository_of_anybody_is_a_model_with_its_own_normalization(server: StandIn, weights: bytes):
    described(server, weights, label_names=[f"class {i}" for i in range(1000)])
    model = models.load(f"hf-hub:{MINE}", device="cpu")
    assert same(model.module, weights) and model.title == f"hf-hub:{MINE}" and model.license == "mit"
    assert model.mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6]) and model.class_names[7] == "class 7"
    assert "file" not in model.module.pretrained_cfg
    asked = len(server.requests)
    server.die()
    assert same(models.load(f"hf-hub:{MINE}@main", device="cpu").module, weights) and len(server.requests) == asked
    assert not models.load(f"hf-hub:{MINE}", pretrained=False, device="cpu").trained


def test_a_repository_that_holds_no_timm_model_is_told(server: StandIn, weights: bytes):
    for repo, config, says in [
            ("somebody/other", b'{"architectures": ["ViTModel"]}', r"is no model of timm.*vv\.wrap\(module\)"),
            ("somebody/new", b'{"architecture": "vit_of_tomorrow"}', "is a vit_of_tomorrow, which timm .* does not know"),
            ("somebody/odd", b"[1]", "is no model of timm")]:
        server.files[repo] = {"config.json": config}
        with pytest.raises(VitvizError, match=says):
            models.load(f"hf-hub:{repo}", device="cpu")
    with pytest.raises(VitvizError, match="repository somebody/gone on .* is missing or private"):
        models.load("hf-hub:somebody/gone", device="cpu")
    described(server, weights[: len(weights) // 2])
    with pytest.raises(VitvizError, match="weights of hf-hub:somebody/mine .*arrived damaged"):
        models.load(f"hf-hub:{MINE}", device="cpu")
    described(server, weights)
    assert same(models.load(f"hf-hub:{MINE}", device="cpu").module, weights)
    server.die()
    with pytest.raises(VitvizError, match="Could not fetch the weights of hf-hub:somebody/far from repository somebody/far"):
        models.load("hf-hub:somebody/far", device="cpu")


@pytest.mark.parametrize("name", [NAME, f"hf-hub:{MINE}"])
def test_trained_weights_are_resampled_to_the_image_size(name: str, server: StandIn, weights: bytes):
    described(server, weights)
    model, own = models.load(name, device="cpu", image_size=64), load(weights)
    found = model.module.state_dict()
    assert model.image_size == 64 and model(torch.rand(1, 3, 64, 64)).shape == (1, 1000)
    assert [key for key in own if own[key].shape != found[key].shape or not torch.equal(own[key], found[key])] == ["pos_embed"]
    assert model.state() != models.load(name, device="cpu").state()


def test_a_size_that_cannot_be_is_refused_before_anything_is_fetched(server: StandIn):
    with pytest.raises(VitvizError, match="patches of 16 px, which do not fill 100 px"):
        models.load(NAME, device="cpu", image_size=100)
    assert not server.requests
