"""The numbers that papers report, and the MixLoRA paper audited against itself. Torch-free."""
