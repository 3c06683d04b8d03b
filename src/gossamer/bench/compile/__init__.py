"""What the compiler of dynamic sparsity gains: padding, experts, activations, masks; beside what others take."""
