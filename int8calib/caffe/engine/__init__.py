"""Run Caffe networks: plans with shared buffers and what runs them in numpy, or on a GPU."""
