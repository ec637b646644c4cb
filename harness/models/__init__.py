"""Base models: their shapes, where their weights come from, and how they are loaded."""
