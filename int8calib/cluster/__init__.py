"""Work on a Dask cluster: images in chunks, each a task whose result is merged as it comes."""
