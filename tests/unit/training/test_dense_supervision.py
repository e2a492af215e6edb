"""The logits of each patch token: by the same norm and head as the CLS token, in every family that has one."""

import pytest
import torch
from timm.models.coat import CoaT
from timm.models.convit import ConVit
from timm.models.pit import PoolingVisionTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitviz_nb.training.dense_supervision import logits_by_token

NETWORKS = {  # name: (a small network for 32 px, how many patch tokens its last block has)
    "vit": (lambda: VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=5), 16),
    "convit": (lambda: ConVit(img_size=32, patch_size=8, embed_dim=8, depth=2, num_heads=2, local_up_to_layer=1, num_classes=5),
               16),
    "pit": (lambda: PoolingVisionTransformer(img_size=32, patch_size=8, stride=4, base_dims=(8, 8), depth=(1, 1), heads=(2, 4),
                                             num_classes=5), 16),
    "coat": (lambda: CoaT(img_size=32, patch_size=4, embed_dims=(32, 32, 32, 32), serial_depths=(1, 1, 1, 1), parallel_depth=1,
                          num_classes=5), 16 + 4 + 1),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    make, tokens = NETWORKS[request.param]
    return make().eval(), tokens


@torch.no_grad()
def test_the_networks_own_logits_are_unchanged(network):
    network, tokens = network
    images = torch.rand(2, 3, 32, 32)
    own, each = logits_by_token(network, images)
    assert torch.allclose(own, network(images), atol=1e-5)
    assert each.shape == (2, tokens, 5)


@torch.no_grad()
def test_every_token_passes_the_last_norm(network):
    network, tokens = network
    network.head = nn.Identity()
    each = logits_by_token(network, torch.rand(2, 3, 32, 32))[1]
    assert each.mean(-1).abs().max() < 1e-4 and torch.allclose(each.var(-1, unbiased=False), torch.ones(2, tokens), atol=1e-2)


def test_a_network_is_left_without_hooks():
    network = NETWORKS["pit"][0]()
    logits_by_token(network, torch.rand(1, 3, 32, 32))
    assert not network.transformers._forward_hooks
