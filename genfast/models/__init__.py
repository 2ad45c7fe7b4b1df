"""The generative models, one per file."""

from dataclasses import fields as _fields
from typing import Any

from genfast.models._base import GenerativeModel as GenerativeModel
from genfast.models._base import require as _require
from genfast.models.autoencoder import Autoencoder as Autoencoder
from genfast.models.autoencoder import AutoencoderConfig as AutoencoderConfig
from genfast.models.gan import GAN as GAN
from genfast.models.gan import GANConfig as GANConfig
from genfast.models.gated_pixelcnn import GatedPixelCNN as GatedPixelCNN
from genfast.models.gated_pixelcnn import GatedPixelCNNConfig as GatedPixelCNNConfig
from genfast.models.pixelcnn import PixelCNN as PixelCNN
from genfast.models.pixelcnn import PixelCNNConfig as PixelCNNConfig
from genfast.models.pixelcnn_plus_plus import PixelCNNPlusPlus as PixelCNNPlusPlus
from genfast.models.pixelcnn_plus_plus import PixelCNNPlusPlusConfig as PixelCNNPlusPlusConfig
from genfast.models.vae import VAE as VAE
from genfast.models.vae import VAEConfig as VAEConfig
from genfast.models.wavenet import WaveNet as WaveNet
from genfast.models.wavenet import WaveNetConfig as WaveNetConfig

MODELS: dict[str, tuple[type[Any], type[Any]]] = {
    "pixelcnn": (PixelCNNConfig, PixelCNN),
    "gated_pixelcnn": (GatedPixelCNNConfig, GatedPixelCNN),
    "pixelcnn_plus_plus": (PixelCNNPlusPlusConfig, PixelCNNPlusPlus),
    "wavenet": (WaveNetConfig, WaveNet),
    "autoencoder": (AutoencoderConfig, Autoencoder),
    "vae": (VAEConfig, VAE),
    "gan": (GANConfig, GAN),
}


def create(name: str, **fields: Any) -> GenerativeModel:
    """Build a model by name, with fresh weights from torch's global generator.

    Args:
        name: one of `MODELS`.
        **fields: settings of that model's config; the others have their defaults.

    Raises:
        InputError: unknown name or setting (the message lists the valid ones), or a bad value.
    """
    config = create_config(name, **fields)
    model: GenerativeModel = MODELS[name][1](config)
    return model


def create_config(name: str, **fields: Any) -> Any:
    """Build the config of a model by name; arguments and errors are those of `create`."""
    _require("create", name in MODELS, f"a model in {', '.join(MODELS)}", name=name)
    config_class = MODELS[name][0]
    valid = [field.name for field in _fields(config_class)]
    unknown = [field for field in fields if field not in valid]
    _require(name, not unknown, f"settings among {', '.join(valid)}", unknown=", ".join(unknown))
    return config_class(**fields)
