"""Numbers from images and features, and the protocol each was made under."""

from maetok_lab.lazy import lazy_names

_NAMES, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "classes": "evaluate_classes",
        "features": "make_reference metric_name",
        "generation": "evaluate_generation",
        "inception": "load_metric_net",
        "metrics": (
            "frechet_distance inception_score kernel_distance monge_distance precision_recall"
        ),
        "npz": "NpzImages read_reference write_npz",
        "pixels": "psnr ssim",
        "protocol": "EvalProtocol EvalResult compare",
        "reconstruction": "evaluate_reconstruction",
        "sample_sets": "class_labels sample_set sampling_options sampling_protocol write_samples",
        "scaling": "copied_share frechet_against_count",
    },
)
