"""A toy Mimi of the `moshi` package with random weights, for parity tests."""

import numpy as np

from mvjax.config import schema

CONFIG = schema.MimiConfig(
    filters=6,
    ratios=(3, 2),
    latent=24,
    layers=2,
    heads=3,
    hidden=40,
    context=7,
    codes=16,
    code_width=10,
    codebooks=4,
    stored_codebooks=6,
)
FRAME = 12  # samples


def assemble(config: schema.MimiConfig = CONFIG):
    """Returns the PyTorch model as `moshi.models.loaders.get_mimi` makes it, on torch's default device."""
    from moshi.models import compression, loaders
    from moshi.modules import SEANetDecoder, SEANetEncoder, transformer
    from moshi.quantization import SplitResidualVectorQuantizer

    seanet = loaders._seanet_kwargs | {
        "dimension": config.latent,
        "n_filters": config.filters,
        "ratios": list(config.ratios),
    }
    blocks = loaders._transformer_kwargs | {
        "d_model": config.latent,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "context": config.context,
        "dim_feedforward": config.hidden,
        "input_dimension": config.latent,
        "output_dimensions": [config.latent],
    }
    quantizer = SplitResidualVectorQuantizer(
        dimension=config.code_width,
        n_q=config.stored_codebooks,
        bins=config.codes,
        input_dimension=config.latent,
        output_dimension=config.latent,
    )
    rate = 2 * int(np.prod(config.ratios))
    return compression.MimiModel(
        SEANetEncoder(**seanet),
        SEANetDecoder(**seanet),
        quantizer,
        channels=1,
        sample_rate=rate,
        frame_rate=1,
        encoder_frame_rate=2,
        causal=True,
        resample_method="conv",
        encoder_transformer=transformer.ProjectedTransformer(**blocks),
        decoder_transformer=transformer.ProjectedTransformer(**blocks),
    )


def build(config: schema.MimiConfig = CONFIG, *, seed: int = 0):
    """Returns the model with random weights."""
    import torch

    model = assemble(config)
    rng = np.random.default_rng(seed)
    state = {
        name: torch.from_numpy(_random(name, tuple(value.shape), rng))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    model.set_num_codebooks(config.codebooks)
    return model.eval()


def _random(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Values that leave no part of the model without influence."""
    if name.endswith("_initialized"):
        return np.ones(shape, np.float32)
    if name.endswith("cluster_usage"):
        usage = rng.uniform(0.5, 3.0, shape)
        usage[3] = 0.0  # an unused code: the centroid is embedding_sum / 1e-5
        return usage.astype(np.float32)
    scale = 0.3 if len(shape) == 1 else np.prod(shape[1:]) ** -0.5
    return (rng.normal(size=shape) * scale).astype(np.float32)
