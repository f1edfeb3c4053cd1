"""An LSTM with peephole connections, which PyTorch does not have."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

__all__ = ["PeepholeLSTM"]


class PeepholeLSTM(nn.LSTM):
    """``nn.LSTM`` whose gates also see the cell state of their own unit (Gers, Schraudolph 2002).

    The gates i and f see the cell state before the step, o sees it after::

        i = sigmoid(W_ii x + b_ii + W_hi h + b_hi + p_i * c)
        f = sigmoid(W_if x + b_if + W_hf h + b_hf + p_f * c)
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)
        c = f * c + i * g
        o = sigmoid(W_io x + b_io + W_ho h + b_ho + p_o * c)
        h = o * tanh(c)                 # and W_hr h with a projection

    Parameters have the names and shapes of ``nn.LSTM``; each layer ``k`` has one more,
    ``weight_ch_lk`` of shape ``(3, hidden_size)``: p_i, p_f, p_o. With these 0 it is ``nn.LSTM``.
    Arguments, shapes and results, ``(output, (h_n, c_n))``, are those of ``nn.LSTM`` as well.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, proj_size, device, dtype
        As of ``nn.LSTM``.

    Raises
    ------
    ValueError
        As ``nn.LSTM``; a packed sequence as input.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, *, proj_size: int = 0,
                 device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         proj_size=proj_size, device=device, dtype=dtype)
        for layer in range(num_layers):
            peephole = torch.empty(3, hidden_size, device=device, dtype=dtype)
            nn.init.uniform_(peephole, -1 / math.sqrt(hidden_size), 1 / math.sqrt(hidden_size))
            self.register_parameter(f"weight_ch_l{layer}", nn.Parameter(peephole))

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
                ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As of ``nn.LSTM``: a sequence and a state, zero if not given, to outputs and state."""
        if isinstance(input, PackedSequence):
            raise ValueError("PeepholeLSTM takes no packed sequence; pad it (pad_packed_sequence)")
        if input.dim() not in (2, 3):
            raise ValueError(f"the input must have 2 or 3 dimensions, not {input.dim()}")
        batched = input.dim() == 3
        x = input.transpose(0, 1) if batched and self.batch_first else input
        x = x if batched else x.unsqueeze(1)
        if hx is None:
            outputs = self.proj_size or self.hidden_size
            hx = (x.new_zeros(self.num_layers, x.shape[1], outputs),
                  x.new_zeros(self.num_layers, x.shape[1], self.hidden_size))
        elif not batched:
            hx = tuple(part.unsqueeze(1) for part in hx)
        self.check_forward_args(x.transpose(0, 1) if self.batch_first else x, hx, None)
        h_n, c_n = [], []
        for layer in range(self.num_layers):
            x, h, c = self._layer(layer, x, hx[0][layer], hx[1][layer])
            h_n.append(h)
            c_n.append(c)
            if layer + 1 < self.num_layers:
                x = functional.dropout(x, self.dropout, self.training)
        state = torch.stack(h_n), torch.stack(c_n)
        if not batched:
            return x.squeeze(1), tuple(part.squeeze(1) for part in state)
        return x.transpose(0, 1) if self.batch_first else x, state

    def _layer(self, layer: int, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One layer: ``(steps, batch, features)`` to outputs and the last h and c."""
        w_hh = getattr(self, f"weight_hh_l{layer}").t()
        w_hr = getattr(self, f"weight_hr_l{layer}").t() if self.proj_size else None
        p_if, p_o = getattr(self, f"weight_ch_l{layer}").split((2, 1))
        bias = None
        if self.bias:
            bias = getattr(self, f"bias_ih_l{layer}") + getattr(self, f"bias_hh_l{layer}")
        # The inputs' part of all steps in one product.
        inputs = functional.linear(x, getattr(self, f"weight_ih_l{layer}"), bias)
        outputs = []
        for now in inputs:
            gates = torch.addmm(now, h, w_hh).unflatten(1, (4, self.hidden_size))
            i, f = torch.sigmoid(gates[:, :2] + p_if * c.unsqueeze(1)).unbind(1)
            c = torch.addcmul(f * c, i, torch.tanh(gates[:, 2]))
            h = torch.sigmoid(torch.addcmul(gates[:, 3], p_o, c)) * torch.tanh(c)
            if w_hr is not None:
                h = h @ w_hr
            outputs.append(h)
        return torch.stack(outputs), h, c
