"""How a cache comes between a diffusers transformer and its blocks, and how the model gets its own calls back."""
