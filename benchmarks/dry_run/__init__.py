"""A step of FLUX.1 at full size on a device that computes nothing: what it would launch, move and wait for."""
