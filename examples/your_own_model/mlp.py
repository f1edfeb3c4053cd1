"""A network of your own, compressed to a file that `openese simulate` and `build` take."""
import torch
from torch import nn

import openese

model = nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Dropout(0.2),
                      nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
# Train it here, or load your weights.
inputs = torch.rand(200, 1, 28, 28)  # some like those to come
network = openese.compress(model, calibration=inputs, density=0.1, code_bits=4, bias_bits=4)
size = openese.save("mlp.ese", network)
openese.load_into(model, openese.load("mlp.ese"))  # the model now computes what the file says
print(f"{4 * sum(p.numel() for p in model.parameters()) / size:.1f}x")
