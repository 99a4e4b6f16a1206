"""Who computes: this process, others on this machine, or a Dask cluster."""
