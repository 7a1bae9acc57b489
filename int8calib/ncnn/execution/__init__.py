"""An ncnn model as a network that is calibrated, compared and inspected."""
