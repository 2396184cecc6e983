"""`python -m safety_neurons`, and `torchrun --nproc-per-node N -m safety_neurons`."""

from safety_neurons.cli import main

main()
