"""The ring algorithm: sums over rings, then a product that mixes channels; its plan, its engines, its cost."""
