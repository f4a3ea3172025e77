"""What importing ``monai_sre`` adds to MONAI's layer factories."""

from __future__ import annotations

from monai.networks.layers.factories import Conv, LayerFactory, Pool
from torch import nn

from monai_sre.layers import conv, conv_transpose, harmonic, pool

_LAYERS: tuple[tuple[LayerFactory, str, tuple[type[nn.Module], ...]], ...] = (
    (Conv, "SRECONV", (conv.SREConv1d, conv.SREConv2d, conv.SREConv3d)),
    (
        Conv,
        "SRECONVTRANS",
        (conv_transpose.SREConvTranspose1d, conv_transpose.SREConvTranspose2d, conv_transpose.SREConvTranspose3d),
    ),
    (Conv, "SREHARMONICCONV", (harmonic.SREHarmonicConv1d, harmonic.SREHarmonicConv2d, harmonic.SREHarmonicConv3d)),
    (Pool, "CENTREDAVG", (pool.CentredAvgPool1d, pool.CentredAvgPool2d, pool.CentredAvgPool3d)),
    (Pool, "CENTREDMAX", (pool.CentredMaxPool1d, pool.CentredMaxPool2d, pool.CentredMaxPool3d)),
)


def register() -> None:
    """Register ``Conv["SRECONV", dim]`` and the others, for ``dim`` 1 to 3; safe to call again.

    Example:
        >>> register()
        >>> Conv["SRECONV", 2].__name__, Pool["CENTREDMAX", 3].__name__
        ('SREConv2d', 'CentredMaxPool3d')
    """
    for factory, name, types in _LAYERS:
        if name not in factory.components:
            description = (types[-1].__doc__ or "").split(";")[0]
            factory.add_factory_callable(name, lambda dim, types=types: types[dim - 1], description)
