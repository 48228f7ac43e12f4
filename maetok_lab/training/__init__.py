"""Train into a run, yielding records. Loops are generators; Accelerate is the engine underneath."""

from maetok_lab.lazy import lazy_names

_NAMES, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "recipe": "TokenizerTraining",
        "diffusion": "DiffusionTraining train_diffusion",
        "task": "StepRecord",
        "presets": (
            "ARCHITECTURES DECODER_TUNING DIFFUSION_TRAINING TOKENIZER_TRAINING"
            " diffusion_training ladder_training tokenizer_training with_weights"
        ),
        "rungs": "ABLATIONS LADDER RIVALS RUNGS",
        "meanings": "MEANINGS meaning_of",
        "tokenizer": "decoder_tuning finetune_decoder train_to_psnr train_tokenizer",
    },
)
