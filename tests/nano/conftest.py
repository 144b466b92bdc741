"""One thread for torch: on models this small two of them mostly wait for each other."""

import torch

torch.set_num_threads(1)
