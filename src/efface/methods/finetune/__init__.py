"""What methods that train weights share: the run, images to train on, parameter sets."""
