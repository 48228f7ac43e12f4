"""maetok_lab: a notebook workbench for one question, what makes a latent space good for diffusion?

    import maetok_lab as lab

A map of the library, in the order in which a study uses it. `lab.NAME` is everything named here;
each room below has more: `dir(lab.plots)` lists what a room offers.

    images       open_images, open_splits                       data/
    tokenizers   load_tokenizer, open_tokenizer (anybody's), tokenizers() lists them by name
                                                                tokenizer/
    training     tokenizer_training, ladder_training -> train_tokenizer,
                 decoder_tuning -> finetune_decoder, diffusion_training -> train_diffusion;
                 follow shows any of them live                  training/
    latents      cached_latents, load_latent_space              data/
    diffusion    load_diffusion, Guidance                       diffusion/
    images again reconstruct, generate                          generation/
    numbers      EvalProtocol, sampling_protocol, evaluate_reconstruction, evaluate_generation,
                 compare                                        evaluation/
    analysis     gmm_curve, linear_probe, project, card_run     analysis/, experiments/
    figures      lab.plots; to be touched: lab.widgets          plots/, widgets/
    studies      lab.experiments: ladder, comparison, settings, what fits, open_generator
                 (the models of a finished study)               experiments/
    runs         Run, list_runs, run_suffix, changes_suffix, usual_labels,
                 runs_root                                      runs/
    notebooks    report, run_notebook, sweep                    workflow/
    machine      pick_device, pick_precision, describe, in_processes; settings: override

All rooms, `lab.runs` and `lab.layers` to `lab.workflow`, and what they stand on (`lab.identity`,
`lab.neighbours`, `lab.nets`, `lab.pictures`, `lab.ranks`, `lab.rng`) can be reached so too.

Nothing is imported before it is used, but that torchvision (and with it timm) is made importable
beside a CPU torch.
"""

from maetok_lab._torchvision import make_importable
from maetok_lab.lazy import lazy_names

make_importable()

_NAMES, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "": (
            "analysis data diffusion evaluation experiments generation identity layers neighbours"
            " nets pictures plots ranks rng runs tokenizer training widgets workflow"
        ),
        "config": "override",
        "device": "describe pick_device pick_precision",
        "ranks": "in_processes",
        "runs": "Run changes_suffix list_runs run_suffix runs_root usual_labels",
        "data.images": "open_images open_splits",
        "data.caching": "cached_latents",
        "data.latents": "load_latent_space",
        "tokenizer.loading": "load_tokenizer",
        "tokenizer.foreign": "open_tokenizer",
        "tokenizer.registry": "tokenizers",
        "diffusion.loading": "load_diffusion",
        "diffusion.sampling": "Guidance",
        "generation.images": "generate reconstruct",
        "evaluation.protocol": "EvalProtocol compare",
        "evaluation.sample_sets": "sampling_protocol",
        "evaluation.reconstruction": "evaluate_reconstruction",
        "evaluation.generation": "evaluate_generation",
        "training.tokenizer": "decoder_tuning finetune_decoder train_tokenizer",
        "training.diffusion": "train_diffusion",
        "training.presets": "diffusion_training ladder_training tokenizer_training",
        "analysis.gmm": "gmm_curve",
        "analysis.probe": "linear_probe",
        "analysis.projection": "project",
        "experiments.cards": "card_run",
        "widgets.live": "follow",
        "workflow": "report run_notebook sweep",
    },
)
