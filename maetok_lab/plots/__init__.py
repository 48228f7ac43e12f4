"""Static figures: `plot_x(data, *, ax=None) -> Axes`, and image sheets."""

from maetok_lab.lazy import lazy_names

_NAMES, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "card": "plot_card",
        "compare": "plot_against plot_convergence plot_loss_curves plot_mean_norms",
        "curves": "axes drawable finish plot_losses",
        "gmm": "plot_gmm_curve plot_modes",
        "guidance": "plot_guidance",
        "denoisers": "plot_denoisers",
        "images": "plot_images plot_reconstructions plot_rows show_sheet",
        "method": "plot_method",
        "masks": "plot_mask_study plot_ratio_curve plot_ratio_curves plot_token_map",
        "projection": "plot_projection",
        "runs": "plot_run_lines",
        "study": "plot_control plot_predictors",
        "sweep": "plot_gallery plot_pareto plot_surface",
        "table": "card_table",
        "theory": "plot_sample_complexity",
    },
)
