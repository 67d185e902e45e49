"""HDF5 datasets: robomimic's one file of demos, and ACT's one file an episode."""

from export.check.hdf5.aloha import aloha_files, check_aloha
from export.check.hdf5.robomimic import check_robomimic

__all__ = ["aloha_files", "check_aloha", "check_robomimic"]
