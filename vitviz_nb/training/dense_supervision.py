"""What each patch token of a transformer's last block would answer: for training that makes every token know the thing."""

import torch
from timm.models.pit import PoolingVisionTransformer
from torch import nn


def logits_by_token(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of ``images`` (N, 3, H, W), normalized: the network's own (N, classes), each patch token's (N, tokens, classes).

    A token is read as the class token is: by the last norm and the head. For timm's transformers with a class token.
    """
    if isinstance(network, PoolingVisionTransformer):  # which hands on the class token alone
        kept = []
        handle = network.transformers.register_forward_hook(lambda module, given, made: kept.append(made[0]))
        try:
            features = network.forward_features(images)
        finally:
            handle.remove()
        patches = network.norm(kept[0].flatten(2).transpose(1, 2))
    else:
        features = network.forward_features(images)
        scales = features if isinstance(features, list) else [features]  # CoaT's are three
        patches = torch.cat([tokens[:, 1:] for tokens in scales], 1)
    return network.forward_head(features), network.head(patches)
