"""Static figures: `plot_x(data, *, ax=None) -> Axes`, and image sheets."""
