"""What is kept from step to step: how it lies in memory, and how it is saved."""
