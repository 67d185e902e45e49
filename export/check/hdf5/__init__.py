"""Checks of HDF5 datasets: robomimic's single file of demos, and ACT's one file per episode."""
