"""EfficientNet-B0 for 32 x 32 images, the paper's network for SVHN (A.3), registered with timm under its own name.

timm cannot build an EfficientNet with custom strides, whatever a saved folder says. So the network is registered with timm when this
module is imported, and saved folders name it as their architecture: timm and transformers load them after
`import nst_train.small_efficientnet`, and refuse them otherwise. A folder that named B0 itself would load anywhere, with B0's strides
and wrong predictions.
"""

from typing import Any

from timm.models import generate_default_cfgs, get_pretrained_cfg, register_model, tf_efficientnet_b0
from torch import nn

default_cfgs = generate_default_cfgs(
    {
        "tf_efficientnet_b0_32.untrained": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": (4, 4),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.4376821, 0.4437697, 0.47280442),  # of SVHN, as in the released code
            "std": (0.19803012, 0.20101562, 0.19703614),
            "first_conv": "conv_stem",
            "classifier": "classifier",
        }
    }
)


@register_model  # type: ignore[untyped-decorator]
def tf_efficientnet_b0_32(pretrained: bool = False, **options: Any) -> nn.Module:  # noqa: ANN401 - what timm passes on
    """EfficientNet-B0 with stride 1 in its second and third block: a 4 x 4 final map at 32 x 32 (A.3). Weights have the shapes of B0's."""
    options["pretrained_cfg"] = options.get("pretrained_cfg") or get_pretrained_cfg("tf_efficientnet_b0_32")
    network = tf_efficientnet_b0(pretrained=pretrained, **options)
    for block in (1, 2):
        network.blocks[block][0].conv_dw.stride = (1, 1)
    return network  # type: ignore[no-any-return]
