"""Dense supervision: the logits of each patch token of a transformer's last block, so that every token learns the class."""

import torch
from timm.models.pit import PoolingVisionTransformer
from torch import nn


def logits_by_token(network: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of normalized images (N, 3, H, W): the network's own (N, classes), and each patch token's (N, tokens, classes).

    A token is read as the CLS token is: by the last norm and the head. For timm's transformers with a CLS token.
    """
    if isinstance(network, PoolingVisionTransformer):  # which passes on the CLS token only
        outputs = []
        handle = network.transformers.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
        try:
            features = network.forward_features(inputs)
        finally:
            handle.remove()
        patches = network.norm(outputs[0].flatten(2).transpose(1, 2))
    else:
        features = network.forward_features(inputs)
        scales = features if isinstance(features, list) else [features]  # CoaT's are three
        patches = torch.cat([tokens[:, 1:] for tokens in scales], 1)
    return network.forward_head(features), network.head(patches)
