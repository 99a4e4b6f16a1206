"""The workers that compute a plan: this process, other processes on this machine, or a Dask cluster."""
