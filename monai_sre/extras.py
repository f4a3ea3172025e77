"""What needs more than torch, MONAI, numpy and scipy says in one sentence which extra of the package brings it."""

from __future__ import annotations

from importlib.util import find_spec

#: What the extra "bundles" brings to read files, train, score and report.
BUNDLES = "pytorch-ignite nibabel pillow scikit-image tifffile tqdm"
#: Names under which packages are imported, where these are not their own.
_IMPORTED_AS = {"pytorch-ignite": "ignite", "pillow": "PIL", "scikit-image": "skimage"}


def require(user: str, packages: str = BUNDLES, extra: str = "bundles") -> None:
    """Refuse to go on where a package is not installed.

    Args:
        user: what needs the packages.
        packages: their names on the package index, separated by blanks.
        extra: the one of ``setup.cfg`` that brings them.

    Raises:
        ImportError: one is missing; the message says what to install.

    Example:
        >>> require("reading files", "pillow nibabel")
        >>> require("the example", "no-such-package")
        Traceback (most recent call last):
        ImportError: the example needs no-such-package: pip install "monai_sre[bundles]"
    """
    missing = [name for name in packages.split() if not is_installed(_IMPORTED_AS.get(name, name))]
    if missing:
        raise ImportError(f'{user} needs {", ".join(missing)}: pip install "monai_sre[{extra}]"')


def is_installed(module: str) -> bool:
    """Whether a module can be imported; it is not."""
    try:
        return find_spec(module) is not None
    except ImportError:
        return False
