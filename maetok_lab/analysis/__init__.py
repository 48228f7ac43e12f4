"""Latents to tables: mixture curves, maps, probes, the diffusability card and the theory's toy."""

from maetok_lab.lazy import lazy_names

_NAMES, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "card": "CardSettings card_correlation cards_of diffusability_card",
        "decoding": "decoder_robustness interpolation_smoothness local_perceptual_continuity",
        "denoisers": "denoiser_curve denoiser_losses",
        "ambiguity": "velocity_ambiguity",
        "geometry": "channel_condition channel_effective_rank channel_statistics"
        " intrinsic_dimension spectrum_numbers token_correlation token_uniformity",
        "gmm": "gmm_curve",
        "guidance": "guidance_toy",
        "grids": "grid_measures grid_of",
        "interpolation": "interpolated_distance mix_latents slerp",
        "maps": "decode_between decoded_psnr make_atlas velocity_losses",
        "masks": "MASK_KINDS draw_masks ratio_curve study_mask",
        "modes": "plane_mixtures",
        "preprocess": "common_dimensions comparable_share needed_dimensions shared_dimensions"
        " spectrum_of",
        "prediction": "at_equal_psnr mean_scores predictors",
        "probe": "knn_probe linear_probe",
        "projection": "fit_projection project",
        "purity": "label_purity",
        "sentences": "losses_sentence nll_sentence probe_sentence scores_sentence sweep_sentence",
        "start_times": "distance_by_start",
        "theory": "ToySettings sample_complexity",
    },
)
