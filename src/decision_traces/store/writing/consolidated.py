"""Telling a Zarr group what arrays it has, as xarray expects it."""

import warnings
from pathlib import Path

import zarr
from zarr.errors import ZarrUserWarning


def consolidate(group: Path) -> None:
    """Write the metadata of a group's arrays into its own as well, once all of them are there.

    `xarray.open_zarr` looks for it first, and warns where it is missing. Any other reader passes over it.
    """
    with warnings.catch_warnings():
        # Zarr 3 says that others need not understand it; they are told that they may pass over it.
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", ZarrUserWarning)
        zarr.consolidate_metadata(group)
