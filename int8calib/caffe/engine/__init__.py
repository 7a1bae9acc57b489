"""Run Caffe networks in numpy: plans with shared buffers, and what runs them."""
