"""Compress any module: an LSTM classifier, its weights in 12-bit fixed point as in ESE."""
from torch import nn

import openese


class Keywords(nn.ModuleDict):
    def forward(self, x):
        return self["head"](self["rnn"](x)[0][:, -1])


model = Keywords({"rnn": nn.LSTM(40, 128, 2, batch_first=True), "head": nn.Linear(128, 12)})
small = openese.compress_weights(model, density=0.1, fixed_bits=12)
print(4 * sum(p.numel() for p in model.parameters()) / openese.save("lstm.ese", small))
openese.load_into(model, openese.load("lstm.ese"))  # to go on with, or to measure
