"""maetok_lab: a notebook workbench for one question, what makes a latent space good for diffusion?

Importing any part of the package first makes torchvision (and with it timm) importable beside a CPU torch.
"""

from maetok_lab._torchvision import make_importable

make_importable()
