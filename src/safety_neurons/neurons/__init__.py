"""Safety neurons: MLP neurons whose activations separate harmful from benign prompts.

The terms are the paper's: rejection neurons stand out on harmful prompts, conformity neurons on benign ones. In the
field's terms, a score is a neuron attribution method, and directions are steering vectors in the basis of neurons.
"""
