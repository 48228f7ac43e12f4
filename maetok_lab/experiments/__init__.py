"""The paper's studies, each number a run: ladder, comparison, cards, settings, planner."""

from maetok_lab.lazy import lazy_names

_NAMES, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "generator": "open_generator",
        "cards": "card_run diffusion_loss generation_scores loss_by_time plain_name trained_card",
        "convergence": (
            "convergence_run convergence_table curves_beside milestone_steps steps_to_reach"
        ),
        "time_left": "forecast",
        "ladder": "Ladder climb",
        "planner": (
            "latent_cache_bytes measure_diffusion measure_tokenizer measured_table recipe_of"
            " without_downloads"
        ),
        "needs": "shortfalls",
        "published": (
            "claims_checked paper_table"
            " published_correlation published_predictors published_results"
        ),
        "ready": "find_tokenizer ready_pair ready_tokenizer",
        "study": "check_row rung_table study_means study_of study_row study_table",
        "sentences": "against_floor beside_study loss_change row_meaning",
        "settings": "Scorer Setting load_score setting_grid settings_table",
    },
)
